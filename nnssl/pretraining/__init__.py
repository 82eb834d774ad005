"""The loop, once for all methods: checkpoints, schedules, distribution, logging."""

"""What the trainers are made of: which checkpoint, transfer and its report, schedules of fine-tuning."""

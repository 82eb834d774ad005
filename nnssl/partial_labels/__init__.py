"""Training on cases of which only some classes are annotated: the loss, the cases, the scores and the trainer."""

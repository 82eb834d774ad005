"""A student that learns from a trained model: the teacher, volumes without labels, and the trainer."""

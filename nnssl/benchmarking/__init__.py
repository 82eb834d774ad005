"""Trainings with few labels on one test set, and the scores of predictions."""

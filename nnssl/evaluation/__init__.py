"""Scores of predicted labels: Dice and normalised surface Dice, case by case and class by class."""

"""Weights of other programs in, and weights for other programs out."""

"""Weights of other programs in: opened without running anything, recognised by their content, written as a run."""

"""Pictures of what a pretraining has learned, and their numbers: what `nnssl_visualize` does."""

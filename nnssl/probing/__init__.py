"""Probing a pretraining while it runs: heads on its frozen features, trained on a labelled dataset."""

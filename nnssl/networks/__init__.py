"""Backbones that return a feature pyramid, and the heads on top of them."""

"""Masked autoencoding (He et al., CVPR 2022)."""

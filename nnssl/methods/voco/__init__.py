"""VoCo (Wu et al., CVPR 2024)."""

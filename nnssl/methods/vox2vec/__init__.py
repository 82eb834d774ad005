"""vox2vec (Goncharov et al., MICCAI 2023)."""

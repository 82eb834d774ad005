"""SAM: self-supervised anatomical embeddings (Yan et al., IEEE TMI 2022)."""

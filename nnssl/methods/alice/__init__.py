"""Alice (Jiang et al., ICCV 2023)."""

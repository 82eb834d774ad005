"""Volume Fusion (Wang et al., 2023): `method`, `fusion`, `loss`."""

"""Dense masked autoencoding with a whole U-Net: `method`, `densify`."""

"""Feature maps of images by a pretrained backbone: prepared, tiled, encoded, matched."""

"""What a pretrained backbone says of images: feature maps, dense maps of whole volumes, one vector a case."""

"""Finding a point of one image in another one by the encodings of a pretrained pixel encoder (SAM, LAPN)."""

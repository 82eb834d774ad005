"""nnU-Net folders: raw datasets with or without labels, plans, preprocessing, reading regions, the loader."""

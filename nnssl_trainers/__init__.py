"""Trainers that nnU-Net finds by name when `nnUNet_extTrainer` holds this folder.

nnU-Net imports every file of the folder as a top-level module and forgets it again, so: one family a file, unique file
names, absolute imports only, no optional dependency, no logic (that lives in `nnssl.finetuning`).
"""

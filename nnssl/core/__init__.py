"""What every other room stands on: names, files, locks. It knows nothing of nnU-Net or torch."""

"""PiMPiC: patch matching and patch contrast."""

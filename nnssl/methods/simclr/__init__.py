"""SimCLR: whole crops, against each other."""

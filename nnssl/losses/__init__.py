"""One loss a file, in the symbols of its paper."""

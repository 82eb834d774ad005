"""What every room stands on: errors, files, names, schemas, geometry, processes."""

VERSION = "0.1.0"  # of the package, as in pyproject.toml

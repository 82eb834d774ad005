"""One pretext task a file: hyper-parameters, views, step. `registry.py` lists them."""

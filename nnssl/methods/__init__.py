"""One pretext task a folder: hyper-parameters, views, step. `registry.py` lists them."""

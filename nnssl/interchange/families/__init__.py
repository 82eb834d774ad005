"""One file for each family of public weights; `nnssl.interchange.registry` lists them."""

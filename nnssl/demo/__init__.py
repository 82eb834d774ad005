"""The whole job on drawn torso CTs: `nnssl_demo`."""

from nnssl.demo.run import run_demo

__all__ = ["run_demo"]

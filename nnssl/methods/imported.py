"""What stands in the place of a method where weights come from elsewhere (`nnssl_import`)."""

from __future__ import annotations

from nnssl.methods.base import Method, MethodConfig


class Imported(Method):
    """A backbone without a pretext task: it is transferred and shown, never pretrained.

    Its checkpoints state their levels themselves (`nnssl.checkpoints.imported`).
    """

    config_class = MethodConfig
    levels = "decoder"

"""Parts of MONAI, which is an extra of this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from nnssl.core.errors import UserError


def import_monai(network: str, module: str, *names: str) -> list[Any]:
    """Import classes of MONAI.

    Args:
        network: What is built of them, for the message.
        module: Where they are.
        names: Of the classes.

    Raises:
        UserError: MONAI, or what it looks for when it runs, cannot be imported; the line to type is named.
    """
    try:
        with torch.device("cpu"):  # under `torch.device("meta")` the modules' own constants must be real
            import_module("einops")
            found = import_module(module)
            return [getattr(found, name) for name in names]
    except (ImportError, AttributeError) as error:
        raise UserError(
            f'{network} is built by MONAI, which cannot be imported ({error}); type: pip install "monai>=1.4" einops'
        ) from error

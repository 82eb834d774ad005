"""Parts of MONAI, an extra of this package: it is imported when a network needs it, never before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from nnssl.core.errors import UserError


def import_monai(network: str, module: str, *names: str) -> list[Any]:
    """Import classes of MONAI.

    Args:
        network: What they are for, in the message.
        module: Full name of their module.
        names: Names of the classes.

    Raises:
        UserError: MONAI, or a package that it needs to run, cannot be imported; the message names the line to type.
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


def monai_name(name: str) -> str:
    """MONAI's name for an entry of the state dict of `SwinUNETR` or `UNETR` of this package."""
    return name.replace("decoder.seg_layers.0.", "out.conv.conv.").removeprefix("backbone.")

"""What else to try with a step: other memory layouts, the optimiser's other kernels, compiled networks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, optim

from nnssl.methods.base import Method
from nnssl.networks import fpn_unet as fpn
from nnssl.networks import layout
from nnssl.networks import pimpic_unet as pimpic_encoder
from nnssl.pretraining.optimisation import compile_backbones

PACKAGE = "package"  # as a run has it
LAYOUTS = {  # where the package chooses a layout, or where choosing one may be worth it (lapn)
    "vox2vec": ("contiguous", "channels_last"),
    "sam": ("channels_last",),
    "pimpic": ("channels_last",),
    "lapn": ("channels_last",),
}
VARIANTS = ("contiguous", "channels_last", "fused", "unfused", "compiled")


def variants_of(method: str, device: torch.device) -> tuple[str, ...]:
    """Those that differ from what the package does on this device."""
    return (*LAYOUTS.get(method, ()), "unfused" if device.type == "cuda" else "fused", "compiled")


@contextlib.contextmanager
def forced_layout(variant: str) -> Iterator[None]:
    """Maps and weights of all convolutions "contiguous" or "channels_last"; with other variants as they are."""
    if variant not in ("contiguous", "channels_last"):
        yield
        return
    convert: Callable[[Tensor], Tensor] = layout.to_channels_last if variant == "channels_last" else Tensor.contiguous
    with (
        patch.object(fpn, "_layout", lambda channels: _format(variant)),
        patch.object(fpn, "to_channels_last", convert),
        patch.object(layout, "_fast", lambda device: _format(variant)),
        patch.object(pimpic_encoder, "_in_fast_layout", lambda x, channels: convert(x)),
    ):
        yield


def prepare(method: Method, variant: str) -> Method:
    """Convert the weights to the layout, or compile the networks as `nnUNet_compile` does."""
    with patch.dict(os.environ, {"nnUNet_compile": str(variant == "compiled")}):
        compile_backbones(method)
    for parameter in method.parameters() if variant in ("contiguous", "channels_last") else ():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=_format(variant))
    return method


def choose_kernel(optimiser: optim.Optimizer, variant: str) -> optim.Optimizer:
    """One fused kernel for the update of all parameters, or torch's default without it; before the first step."""
    for group in optimiser.param_groups if variant in ("fused", "unfused") else ():
        group["fused"] = variant == "fused"
    return optimiser


def _format(variant: str) -> torch.memory_format:
    return torch.channels_last_3d if variant == "channels_last" else torch.contiguous_format

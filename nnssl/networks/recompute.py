"""Activation checkpointing: blocks keep their input and compute their activations again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nnssl.networks.fpn_unet import ResidualBlock
from nnssl.networks.nnformer_blocks import Embedding, SkipAttentionBlock
from nnssl.networks.pimpic_unet import ConvBlock
from nnssl.networks.stunet import ResidualUnit
from nnssl.networks.unet3d import NormedConvolution

_OWN = (
    *(ResidualBlock, ConvBlock, ResidualUnit, NormedConvolution),
    *(Embedding, SkipAttentionBlock, nn.TransformerEncoderLayer),
)
_OF_OTHERS = (
    "dynamic_network_architectures.building_blocks.simple_conv_blocks.StackedConvBlocks",
    "dynamic_network_architectures.building_blocks.residual.BasicBlockD",
    "dynamic_network_architectures.building_blocks.residual.BottleneckD",
    "monai.networks.blocks.convolutions.Convolution",
    "monai.networks.blocks.convolutions.ResidualUnit",
    "monai.networks.blocks.segresnet_block.ResBlock",
    "monai.networks.nets.segresnet_ds.SegResBlock",
    "monai.networks.blocks.transformerblock.TransformerBlock",
    "monai.networks.blocks.unetr_block.UnetrBasicBlock",
    "monai.networks.blocks.unetr_block.UnetrPrUpBlock",
    "monai.networks.blocks.unetr_block.UnetrUpBlock",
    "timm.models.eva.EvaBlock",
)


def recompute_activations(module: nn.Module, on: bool = True) -> None:
    """Turn the recomputation of a module's blocks on or off, in place.

    Gradients stay the same to the bit where the operations are deterministic: random numbers are drawn again, and
    running statistics take a batch once. Parameters, buffers and state-dict keys stay.
    """
    for block in _outermost_blocks(module):
        plain = _plain_class(block)
        block.__class__ = _recomputed(plain) if on else plain  # type: ignore[arg-type]
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "use_checkpoint")]
    for layer in layers:  # MONAI's Swin transformers do it themselves
        layer.use_checkpoint = on


def _outermost_blocks(module: nn.Module) -> Iterator[nn.Module]:
    plain = _plain_class(module)
    if issubclass(plain, _OWN) or f"{plain.__module__}.{plain.__qualname__}" in _OF_OTHERS:
        yield module
        return
    for child in module.children():
        yield from _outermost_blocks(child)


class _Recomputed:
    """Comes before the class of a block."""

    def forward(self, *inputs: Any) -> Any:
        """The block's result; nothing of it but the inputs is kept where a gradient is wanted."""
        run = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*inputs)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: _contexts(self))


@cache
def _recomputed(plain: type[nn.Module]) -> type[nn.Module]:
    return type(plain.__name__, (_Recomputed, plain), {})


def _plain_class(module: nn.Module) -> type[nn.Module]:
    kind = type(module)
    return kind.__mro__[2] if issubclass(kind, _Recomputed) else kind


def _contexts(block: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _again(block)


def _again(block: nn.Module) -> AbstractContextManager[None]:
    """For the backward pass: the layers as they are now, which `nnssl.networks.sparse` changes for a forward pass."""
    forwards = {layer: vars(layer)["forward"] for layer in block.modules() if "forward" in vars(layer)}
    return _as_in_forward_pass(block, forwards)


@contextmanager
def _as_in_forward_pass(block: nn.Module, forwards: dict[nn.Module, Any]) -> Iterator[None]:
    """With the forward functions of that pass, and by its batch: running statistics, which it has moved, stay."""
    own = {layer: vars(layer).get("forward") for layer in forwards}
    for layer, forward in forwards.items():
        vars(layer)["forward"] = forward
    try:
        with _fixed_statistics(block):
            yield
    finally:
        for layer, forward in own.items():
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


@contextmanager
def _fixed_statistics(block: nn.Module) -> Iterator[None]:
    """Normalise by the batch without moving the running statistics."""
    found = (m for m in block.modules() if isinstance(m, _BatchNorm) and m.training)
    layers: list[Any] = [layer for layer in found if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)

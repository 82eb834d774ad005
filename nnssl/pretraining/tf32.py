"""TF32 in the matrix products of networks that train in float32 on a card, while losses keep float32.

Torch's own default is TF32 in convolutions and float32 in matrix products. Products of losses are computed before the
gradient reaches the network, so a boundary behind the network switches TF32 on in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnssl.methods.shared.block_tokens import BlockTokens
from nnssl.networks.pyramid import FeaturePyramid

_before: list[bool] = []  # whether products were in TF32 before each network whose forward pass is running


def use_tf32(method: nn.Module, device: torch.device, precision: torch.dtype) -> bool:
    """Let the networks of a method, student and teacher, multiply in TF32 on a card, if they train in float32.

    Compiled networks keep float32.

    Returns:
        Whether they do; then call `exact_products` after every backward pass.
    """
    modules = list(method.modules())
    compiled = any(module._compiled_call_impl is not None for module in modules)
    if device.type != "cuda" or precision != torch.float32 or compiled:
        return False
    for module in modules:
        if isinstance(module, (FeaturePyramid, BlockTokens)):
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)
    return True


def exact_products() -> None:
    """Multiply in float32 from now on."""
    _before.clear()
    _allow(False)


def _allow(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on


def _enter(module: nn.Module, inputs: Any) -> None:
    _before.append(torch.backends.cuda.matmul.allow_tf32)
    _allow(True)


def _leave(module: nn.Module, inputs: Any, result: Any) -> Any:
    _allow(_before.pop())  # still on where a checkpoint computes again, in the network's backward pass
    if isinstance(result, (list, tuple)):
        return [_Boundary.apply(level) for level in result]
    return result if result is None else _Boundary.apply(result)


class _Boundary(torch.autograd.Function):
    """The same values; in the backward pass all before it is the network's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _allow(True)
        return gradient

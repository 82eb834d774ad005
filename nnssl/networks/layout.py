"""The memory layout of maps and weights in which a U-Net is fastest: channels last on a CPU, the default on a card.

A card's instance normalisation copies channels-last maps to the default layout, and the convolution behind it gets a
mixture; cuDNN converts within its convolutions for a fraction of that (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class InFastLayout(nn.Module):
    """A network whose convolutions keep the layout of the device that they are on, also after a move."""

    @property
    def laid_out(self) -> nn.Module:
        """The part that has this layout: all of it."""
        return self

    def lay_out(self) -> None:
        """Convert the weights of convolutions in place; the values stay."""
        for parameter in self.laid_out.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=_fast(parameter.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        self.lay_out()
        return moved


def in_fast_layout(x: Tensor) -> Tensor:
    """The volume (B, C, Z, Y, X) in the layout of the weights of an `InFastLayout`."""
    return to_channels_last(x) if _fast(x.device) == torch.channels_last_3d else x.contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """Return the volume (B, C, Z, Y, X) in `torch.channels_last_3d`, also when C is 1.

    With one channel both layouts have the same bytes in the same order and torch keeps the strides of the default one.
    The first convolution would then write the default layout, and every later layer would follow it.
    """
    if x.shape[1] != 1:
        return x.contiguous(memory_format=torch.channels_last_3d)
    batch, _, *size = x.shape
    return x.reshape(batch, *size, 1).permute(0, 4, 1, 2, 3)


def _fast(device: torch.device) -> torch.memory_format:
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format

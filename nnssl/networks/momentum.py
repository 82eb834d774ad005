"""Momentum networks: a frozen copy that follows a network as an exponential moving average of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network, shared: Iterable[Tensor] = ()) -> Network:
    """A copy of the network with equal values and without gradients.

    Args:
        network: what is copied.
        shared: parameters and buffers of the network that the copy needs none of its own of, such as an unused decoder.

    Returns:
        The copy; its parameters take part neither in an optimiser (nothing requires a gradient) nor in
        DistributedDataParallel's reductions.
    """
    kept = {id(tensor): tensor for tensor in shared}
    copied = deepcopy(network, dict(kept))
    for parameter in copied.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    return copied


@torch.no_grad()
def update_momentum(follower: nn.Module, network: nn.Module, momentum: float) -> None:
    """Set every parameter of the follower to momentum * itself + (1 - momentum) * the network's, in place.

    Buffers are left alone: running statistics are those of the follower's own forward passes. A follower that equals
    the network stays bitwise as it is.

    Args:
        follower: made by `momentum_copy`.
        network: what it follows.
        momentum: 0 copies, 1 does nothing.
    """
    pairs = zip(follower.parameters(), network.parameters(), strict=True)
    own = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
    get_ema_multi_avg_fn(momentum)([mine for mine, _ in own], [theirs for _, theirs in own], 0)

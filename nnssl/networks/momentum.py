"""Momentum networks: a frozen copy that follows a network as an exponential moving average of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnssl.networks.pyramid import FeaturePyramid

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
    if own:  # a head may have none
        get_ema_multi_avg_fn(momentum)([mine for mine, _ in own], [theirs for _, theirs in own], 0)


class Follows(Protocol):
    """A method with a momentum network."""

    def follow_student(self) -> None:
        """Give the momentum network the student's values, as at the beginning."""

    def register_load_state_dict_post_hook(self, hook: Callable[[Any, Any], None]) -> Any:
        """As of `torch.nn.Module`."""


def begin_equal(method: Follows, name: str) -> None:
    """See to it that a run that starts from another run's backbone begins with a momentum network that equals it.

    Args:
        method: what is loaded.
        name: of its momentum network; values for that, where there are some, are kept.
    """

    def follow(loaded: Any, incompatible: Any) -> None:
        if any(missing.startswith(f"{name}.") for missing in incompatible.missing_keys):
            loaded.follow_student()

    method.register_load_state_dict_post_hook(follow)


class MomentumNetworks(nn.ModuleDict):
    """Copies of a student's networks that follow them, under the same names.

    What the backbone's maps do not depend on, such as the decoder of the plans' network, is shared with the student.

    Args:
        backbone: The student's, copied as "backbone".
        others: What the student has beside it, such as heads.
    """

    def __init__(self, backbone: FeaturePyramid, **others: nn.Module) -> None:
        used = {id(tensor) for tensor in backbone.used_tensors().values()}
        idle = [tensor for tensor in (*backbone.parameters(), *backbone.buffers()) if id(tensor) not in used]
        student = {"backbone": backbone, **others}
        super().__init__({name: momentum_copy(network, idle) for name, network in student.items()})

    def follow(self, student: Mapping[str, nn.Module], momentum: float) -> None:
        """One step of `update_momentum` for each network of the student, by its name."""
        for name, network in student.items():
            update_momentum(self[name], network, momentum)

    def become(self, student: Mapping[str, nn.Module]) -> None:
        """Take all values of the student, as at the beginning; buffers too."""
        for name, network in student.items():
            self[name].load_state_dict(network.state_dict())

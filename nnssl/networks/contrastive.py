"""Momentum networks: a frozen copy that follows a network as an exponential moving average of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnssl.networks.pyramid import FeaturePyramid


def l2_normalise(x: Tensor, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Return x / max(|x|, eps): a zero vector stays zero (cosine 0 with everything) and has a finite gradient.

    Args:
        x: any floating tensor; half precisions are cast up to float32 first.
        dim: axis of the vectors.
        eps: smallest length that is divided by.

    Returns:
        A tensor of x's shape, float64 for float64 and float32 for all else.
    """
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=dim, eps=eps)


def projection_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Build the three-layer head of vox2vec (methods.md 1.2), which uses `hidden_features = in_features`.

    It maps (N, in_features) to (N, out_features), not normalised; in training N must be at least 2 (batch statistics).
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )


def batch_statistics_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Build the three-layer head of VoCo (methods.md 2.2): batch normalisation without weights or running statistics.

    It maps (N, in_features) to (N, out_features), not normalised, and always by the statistics of the N rows: N must be
    at least 2 in training, and should be 18 or more.
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, hidden_features),
        nn.BatchNorm1d(hidden_features, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )


class DinoHead(nn.Module):
    """Three-layer head with a bottleneck of unit length and a linear layer of unit directions (DINO; methods.md 4.2).

    Args:
        in_features: of the vectors.
        out_features: d of the result.
        hidden_features: of the two hidden layers.
        bottleneck: of the unit vectors before the last layer.
    """

    def __init__(self, in_features: int, out_features: int, hidden_features: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Linear(bottleneck, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to cosines with the directions (..., out_features), each in -1..1."""
        # the authors' weight normalisation with its lengths frozen at 1
        return functional.linear(l2_normalise(self.mlp(x)), l2_normalise(self.directions.weight))


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

    def student(self) -> dict[str, Any]:
        """The networks that the momentum network is made of."""

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
            getattr(loaded, name).become(loaded.student())

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

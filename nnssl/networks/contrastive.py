"""Parts of contrastive methods: unit vectors, projection heads, and momentum networks that follow a student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nnssl.networks.pyramid import FeaturePyramid


def l2_normalise(x: Tensor, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Return x / max(|x|, eps): a zero vector stays zero (cosine 0 to any other) and has a finite gradient.

    Args:
        x: any floating tensor; half precisions are cast up to float32 first.
        dim: axis of the vectors.
        eps: smallest divisor.

    Returns:
        A tensor of x's shape; float64 for float64, else float32.
    """
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=dim, eps=eps)


def projection_head(
    in_features: int, hidden_features: int, out_features: int, batch_statistics: bool = False
) -> nn.Sequential:
    """Build the three-layer head of vox2vec (methods.md 1.2) and PiMPiC, or of VoCo (methods.md 2.2).

    It maps (N, in_features) to (N, out_features), not normalised; in training N must be at least 2.

    Args:
        in_features: Width of the input.
        hidden_features: Width of both hidden layers; vox2vec takes `in_features`.
        out_features: Width of the output.
        batch_statistics: As in VoCo, normalise without weights and always by the statistics of the N rows; N should be
            18 or more.
    """
    own = not batch_statistics
    layers: list[nn.Module] = []
    for features in (in_features, hidden_features):
        normalisation = nn.BatchNorm1d(hidden_features, affine=own, track_running_stats=own)
        layers += [nn.Linear(features, hidden_features), normalisation, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden_features, out_features))


class BatchNormHead(nn.Module):
    """Linear layers with batch norm and ReLU between them, and batch norm without weights at the end (MoCo v3).

    MoCo v3's projector has three linear layers, its predictor two. In training, every batch norm takes the vectors of
    one call as its rows, those of all processes where `synchronise_batch_norm` was called: two at least.

    Args:
        widths: of the input, of the hidden layers, and of the output.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths[:-1]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))
        self.normalise = RowNorm(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), of mean 0 and deviation 1 over the rows; at least float32."""
        normalised: Tensor = self.normalise(self.layers(x.flatten(0, -2)))
        return normalised.view(*x.shape[:-1], -1)


class RowNorm(nn.Module):
    """Batch norm without weights over all vectors of a call.

    Args:
        width: d of the vectors.
        running: evaluate with running statistics; otherwise always with those of the call.
    """

    def __init__(self, width: int, running: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, track_running_stats=running)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d), at least in float32."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normalised: Tensor = self.norm(wide.flatten(0, -2))
        return normalised.view_as(x)


class DinoHead(nn.Module):
    """Three-layer head with a bottleneck of unit length and a linear layer of unit directions (DINO; methods.md 4.2).

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        hidden_features: Width of both hidden layers.
        bottleneck: Width of the unit vectors before the last layer.
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

    def forward(self, x: Tensor, directions: nn.Linear | None = None) -> Tensor:
        """Map (..., in_features) to cosines with the directions (..., out_features), in [-1, 1].

        Other `directions` than the head's own may be given.
        """
        weight = self.directions.weight if directions is None else directions.weight
        # the authors' weight normalisation, with its lengths frozen at 1
        return functional.linear(l2_normalise(self.mlp(x)), l2_normalise(weight))


Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network, shared: Iterable[Tensor] = ()) -> Network:
    """Copy a network, without gradients: neither optimisers nor DistributedDataParallel touch the copy.

    Args:
        network: The original.
        shared: Parameters and buffers that the copy takes over instead of copying, such as an unused decoder's.
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

    Buffers stay: running statistics come from the follower's own forward passes. A follower that equals the network
    does not change by a bit.

    Args:
        follower: From `momentum_copy`.
        network: The network that it follows.
        momentum: 0 copies, 1 does nothing.
    """
    pairs = zip(follower.parameters(), network.parameters(), strict=True)
    own = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
    if own:  # a head may have none
        get_ema_multi_avg_fn(momentum)([mine for mine, _ in own], [theirs for _, theirs in own], 0)


def begin_equal(method: Any, name: str) -> None:
    """Let a run that starts from another run's backbone begin with a momentum network equal to the student.

    Args:
        method: A method with `student()`, the networks that the momentum network follows.
        name: Attribute of its `MomentumNetworks`, which keep any values that are loaded for them.
    """

    def follow(loaded: Any, incompatible: Any) -> None:
        if any(missing.startswith(f"{name}.") for missing in incompatible.missing_keys):
            getattr(loaded, name).become(loaded.student())

    method.register_load_state_dict_post_hook(follow)


class MomentumNetworks(nn.ModuleDict):
    """Copies of a student's networks that follow them, under the same names.

    Tensors that the backbone's maps do not depend on, such as an unused decoder's, are shared with the student.

    Args:
        backbone: The student's backbone, copied as "backbone".
        others: The student's other networks, such as heads.
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
        """Take all values of the student, buffers too, as at the beginning."""
        for name, network in student.items():
            self[name].load_state_dict(network.state_dict())

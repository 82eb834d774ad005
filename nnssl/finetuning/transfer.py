"""Loading pretrained weights, with a report that accounts for every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.finetuning.pretrained import Pretrained
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import FeaturePyramid, Stride
from nnssl.networks.vit import resized_positions

_NAMED = 3  # tensors that a message names


@dataclass
class TransferReport:
    """What happened to every tensor: names and numbers of values.

    Args:
        loaded: took the checkpoint's values as they are.
        adapted: took them in another shape (the first convolution, for more channels; position embeddings, for another
            patch).
        fresh: of the network, initialised anew.
        unused: of the checkpoint, left there.
    """

    loaded: dict[str, int] = field(default_factory=dict)
    adapted: dict[str, int] = field(default_factory=dict)
    fresh: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line a group."""
        explained = {
            "loaded": self.loaded,
            "adapted": self.adapted,
            "fresh": self.fresh,
            "unused": self.unused,
        }
        return [
            f"{name + ':':9} {len(group):4} tensors, {sum(group.values()):12,} values{_named(group, name)}"
            for name, group in explained.items()
        ]


class PretrainedNetwork(Protocol):
    """A network of which a part is pretrained (`nnssl.finetuning.segmentation`)."""

    input_channels: int

    def pretrained_tensors(self) -> Mapping[str, Tensor]:
        """Its pretrained part, by the names of the pretraining's backbone; every tensor once."""

    def own_tensors(self) -> Mapping[str, Tensor]:
        """Every tensor that its state dict holds and its logits depend on, once, by its name there."""

    def modules(self) -> Iterator[nn.Module]:
        """As of `nn.Module`."""


def load_pretrained(network: PretrainedNetwork, source: Pretrained, advice: str) -> TransferReport:
    """Give the network's pretrained part the pretrained values; the rest of it stays fresh.

    All tensors of that part have to be there with their shapes. There are two exceptions. Convolutions that read the
    image: weights of one channel are shared evenly among several, so that equal channels give what the one gave. And
    learned position embeddings, which are interpolated from the pretraining's grid of tokens to the network's.

    Args:
        network: what to load into.
        source: what to load.
        advice: what to do when the architectures differ, as the end of a sentence.

    Raises:
        UserError: another architecture, with the first differing tensors and their shapes, or nothing to load.
    """
    report, wanted, given = TransferReport(), network.pretrained_tensors(), source.backbone
    values: dict[str, Tensor] = {}
    different = []
    for name, tensor in wanted.items():
        found = given.get(name)
        if found is not None and found.shape == tensor.shape:
            values[name], report.loaded[name] = found, tensor.numel()
        elif found is not None and (adapted := _adapted(name, found, tensor.shape, network, source)) is not None:
            values[name], report.adapted[name] = adapted, tensor.numel()
        else:
            shape = "no such tensor" if found is None else tuple(found.shape)
            different.append(f"{name}: {shape} in the checkpoint, {tuple(tensor.shape)} in these plans")
    if different:
        more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise UserError(f"{source.path} holds another network than these plans ({len(different)} of {len(wanted)} "
                        f"tensors differ: {'; '.join(different[:_NAMED])}{more}); {advice}")  # fmt: skip
    if not report.loaded:
        raise UserError(f"{source.path} holds nothing that these plans' network could take; {advice}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(values[name])
    used = {id(tensor) for tensor in wanted.values()}
    report.fresh = {n: t.numel() for n, t in network.own_tensors().items() if id(t) not in used}
    report.unused = {n: t.numel() for n, t in _once(given).items() if n not in wanted} | source.others
    return report


def _adapted(
    name: str, found: Tensor, wanted: Sequence[int], network: PretrainedNetwork, source: Pretrained
) -> Tensor | None:
    """A tensor in the shape that the network wants; None where it cannot be brought there."""
    if _widens_input(found.shape, wanted, network.input_channels):
        return found.expand(*wanted) / network.input_channels
    grid = _position_grids(network.modules()).get(name)
    if grid is None or found.ndim != 3 or found.shape[2] != wanted[2]:
        return None
    with torch.device("meta"):  # for the grid only
        given = build_backbone(source.plans, source.configuration, source.levels).position_grids
    return resized_positions(found, given[name], grid) if name in given else None


def _position_grids(modules: Iterator[nn.Module]) -> dict[str, Stride]:
    """Of the one pyramid among the modules that has position embeddings."""
    pyramids = (module for module in modules if isinstance(module, FeaturePyramid))
    return {name: grid for pyramid in pyramids for name, grid in pyramid.position_grids.items()}


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the further names of shared tensors (a checkpoint keeps them shared)."""
    first: dict[int, str] = {}
    return {n: t for n, t in state.items() if first.setdefault(t.data_ptr(), n) == n or not t.numel()}


def _widens_input(found: Sequence[int], wanted: Sequence[int], channels: int) -> bool:
    """Whether a convolution of one input channel could serve the network's several input channels."""
    same = len(found) == len(wanted) and [*found[:1], *found[2:]] == [*wanted[:1], *wanted[2:]]
    return len(found) == 5 and same and found[1] == 1 and wanted[1] == channels


def _named(group: Mapping[str, int], kind: str) -> str:
    """The names of a group whose names say something."""
    if not group or kind == "loaded":
        return ""
    first = ", ".join(list(group)[:_NAMED])
    return f" ({first}{', ...' if len(group) > _NAMED else ''})"

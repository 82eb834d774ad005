"""Loading pretrained weights, with a report that accounts for every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.finetuning.pretrained import Pretrained
from nnssl.networks.pyramid import FeaturePyramid

_NAMED = 3  # tensors that a message names


@dataclass
class TransferReport:
    """What happened to every tensor: names and numbers of values.

    Args:
        loaded: took the checkpoint's values as they are.
        adapted: took them in another shape (the first convolution, for more channels).
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


def load_backbone(network: nn.Module, source: Pretrained, advice: str) -> TransferReport:
    """Give the network's `backbone` (a `FeaturePyramid`) the pretrained values.

    All tensors that the maps depend on have to be there with their shapes. The only exception is the first convolution:
    weights of one channel are shared evenly among several, so that equal channels give what the one gave.

    Args:
        network: with the attribute `backbone`; the rest of it stays fresh.
        source: what to load.
        advice: what to do when the architectures differ, as the end of a sentence.

    Raises:
        UserError: another architecture, with the first differing tensors and their shapes, or nothing to load.
    """
    backbone: FeaturePyramid = network.backbone  # type: ignore[assignment]
    report, given = TransferReport(), dict(source.backbone)
    wanted, different = backbone.used_tensors(), []
    values: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        found = given.get(name)
        if found is not None and found.shape == tensor.shape:
            values[name], report.loaded[name] = found, tensor.numel()
        elif found is not None and _widens_input(found.shape, tensor.shape, backbone.input_channels):
            values[name] = found.expand(tensor.shape) / backbone.input_channels
            report.adapted[name] = tensor.numel()
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
    idle = tuple(f"backbone.{prefix}" for prefix in backbone.unused)
    of_network, saved = {**dict(network.named_parameters()), **dict(network.named_buffers())}, network.state_dict()
    report.fresh = {
        n: t.numel() for n, t in of_network.items() if id(t) not in used and n in saved and not n.startswith(idle)
    }
    names = backbone.state_dict(keep_vars=True)  # every name of every tensor: a shared one has several
    report.unused = {n: t.numel() for n, t in given.items() if n not in names or id(names[n]) not in used}
    report.unused.update(source.others)
    return report


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

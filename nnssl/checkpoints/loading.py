"""The one way in which tensors of a checkpoint get into a network: by name and shape, with an account of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError

_NAMED = 3  # tensors that a message names
Adapt = Callable[[str, Tensor, Tensor], Tensor | None]  # name, what is given, what is wanted


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


def fitting(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], adapt: Adapt | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which of the given tensors have a place in a network.

    Args:
        wanted: tensors of the network by name; only their shapes are looked at.
        given: tensors of a checkpoint by name.
        adapt: brings a tensor of another shape to the wanted one, or returns None.

    Returns:
        Tensors of the wanted shapes by name; and for each other name of `wanted` what is there instead.
    """
    values: dict[str, Tensor] = {}
    different: dict[str, str] = {}
    for name, tensor in wanted.items():
        found = given.get(name)
        if found is not None and found.shape != tensor.shape:
            found = None if adapt is None else adapt(name, found, tensor)
        if found is not None:
            values[name] = found
        else:
            shape = tuple(given[name].shape) if name in given else "no such tensor"
            different[name] = f"{shape} in the checkpoint, {tuple(tensor.shape)} in these plans"
    return values, different


def fill(wanted: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    with torch.no_grad():
        for name, value in values.items():
            wanted[name].copy_(value)


def load_whole(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network that was built from a checkpoint's own plans.

    Args:
        network: what is filled.
        state: of all of it, from the checkpoint.
        path: of the checkpoint, for the message.

    Raises:
        UserError: names or shapes differ.
    """
    own = network.state_dict()
    wrong = sorted({*fitting(own, state)[1], *(state.keys() - own.keys())})
    if wrong:
        raise UserError(f"{path} does not hold the network of its own plans ({first_of(wrong)}); take a checkpoint "
                        f"that nnssl_pretrain wrote and left unchanged")  # fmt: skip
    network.load_state_dict(state)


def first_of(texts: Collection[str], separator: str = ", ") -> str:
    """The first ones, and how many more there are."""
    more = len(texts) - _NAMED
    return separator.join(list(texts)[:_NAMED]) + (f"{separator}and {more} more" if more > 0 else "")


def _named(group: Mapping[str, int], kind: str) -> str:
    """The names of a group whose names say something."""
    if not group or kind == "loaded":
        return ""
    first = ", ".join(list(group)[:_NAMED])
    return f" ({first}{', ...' if len(group) > _NAMED else ''})"

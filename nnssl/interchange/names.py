"""Names of tensors in files of other programs: what stands before a network's own names, and what is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

_OTHER_COPIES = ("teacher", "ema", "momentum", "target")  # of the same network; the one that learned is wanted


class Found(NamedTuple):
    """A network among the tensors of a file."""

    prefix: str  # that its names have in the file
    inside: dict[str, Tensor]  # by their names without it


def below(tensors: Mapping[str, Tensor], sign: str) -> Found | None:
    """The tensors beside the one called `sign`, whatever wrappers' names stand before it.

    Where a file holds the network several times, a teacher's or an averaged copy is not meant.

    Args:
        tensors: of a file, by their names.
        sign: a name that only this network has.
    """
    prefixes = [name[: -len(sign)] for name in tensors if name == sign or name.endswith(f".{sign}")]
    wanted = [p for p in prefixes if not set(p.split(".")) & set(_OTHER_COPIES)] or prefixes
    if not wanted:
        return None
    prefix = min(wanted, key=len)
    return Found(prefix, {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})


def left_of(names: Iterable[str], reasons: Mapping[str, str], otherwise: str) -> dict[str, str]:
    """Why each of these tensors is not taken.

    Args:
        names: of the tensors, as in the file.
        reasons: by a part of the name; the first that fits counts.
        otherwise: the reason where none fits.
    """
    return {name: next((r for part, r in reasons.items() if part in name), otherwise) for name in names}


def numbered(names: Iterable[str], before: str, after: str = "") -> int:
    """How many numbers stand between `before` and `after` in the names, such as the blocks of a stage."""
    found = {name[len(before) :].partition(".") for name in names if name.startswith(before)}
    return len({number for number, _, rest in found if number.isdecimal() and rest.startswith(after)})

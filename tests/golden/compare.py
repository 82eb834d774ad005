"""How two recordings are compared: names and shapes exactly, floats within a tolerance; what differs in words."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

TOLERANCE = 1e-4  # relative: processors round differently
FLOOR = 1e-12  # absolute: what is 0 on one of them is rounding on another
# Half precision, in which nnU-Net sums logits, turns a voxel now and then: two of them, or 0.5 %.
_VOXELS = "voxels"
_FEW_VOXELS, _FEW = 2, 5e-3


class Named(str):
    """A summary of named things, which keeps the names for the message."""

    names: list[str]


def differences(recorded: Any, now: Any, where: str = "") -> list[str]:
    """A line for everything that is not as it was recorded; `where` is the path to it."""
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        found = []
        for key in sorted({*recorded, *now}):
            path = f"{where}.{key}" if where else str(key)
            if key not in now:
                found.append(f"{path} is gone; it was {_short(recorded[key])}")
            elif key not in recorded:
                found.append(f"{path} is new: {_short(now[key])}")
            else:
                found += differences(recorded[key], now[key], path)
        return found
    if isinstance(recorded, list) and isinstance(now, list):
        return _of_lists(recorded, now, where)
    return [] if same(recorded, now, where) else [f"{where}: recorded {_short(recorded)}, now {_short(now)}"]


def same(recorded: Any, now: Any, where: str, tolerance: float | None = None) -> bool:
    """Whether two values that are no containers agree; the tolerance is `TOLERANCE` unless another is given."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (recorded, now))
    if numbers and _VOXELS in where.split("."):
        return abs(recorded - now) <= max(_FEW_VOXELS, _FEW * abs(recorded))
    if numbers and isinstance(recorded, float):
        return recorded == now or math.isclose(recorded, now, rel_tol=tolerance or TOLERANCE, abs_tol=FLOOR)
    return bool(recorded == now)


def renewed(recorded: Any, now: Any, where: str = "") -> Any:
    """What to record now: the old values where they still hold to a tenth of the tolerance.

    Rounding then moves few digits of the file, and leaves most of the tolerance to other processors.
    """
    if isinstance(recorded, dict) and isinstance(now, dict):
        return {key: renewed(recorded.get(key), value, f"{where}.{key}") for key, value in now.items()}
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        return [renewed(old, new, where) for old, new in zip(recorded, now, strict=True)]
    return recorded if recorded is not None and same(recorded, now, where, TOLERANCE / 10) else now


def plain(value: Any) -> Any:
    """A value as JSON holds it; floats to seven digits, paths as text."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


def tensors(state: Mapping[str, Any]) -> dict[str, str]:
    """Names, shapes and types of a state dict by their first two words, each group in a line."""
    groups: dict[str, list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            groups.setdefault(".".join(name.split(".")[:2]), []).append(f"{name} {tuple(tensor.shape)} {tensor.dtype}")
    return {group: summary(names, "tensors") for group, names in groups.items()}


def summary(names: Iterable[str], kind: str) -> Named:
    """Number and hash of names; their order does not count."""
    ordered = sorted(names)
    line = Named(f"{len(ordered)} {kind}, {hashlib.sha256(chr(10).join(ordered).encode()).hexdigest()[:12]}")
    line.names = ordered
    return line


def norms(state: Mapping[str, Any]) -> dict[str, float]:
    """L2 norm over all floats of a state dict, for each of its modules."""
    squares: dict[str, float] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            module = name.split(".")[0]
            squares[module] = squares.get(module, 0.0) + float(tensor.detach().double().square().sum())
    return {module: math.sqrt(square) for module, square in squares.items()}


def _of_lists(recorded: list[Any], now: list[Any], where: str) -> list[str]:
    if all(isinstance(entry, str) for entry in (*recorded, *now)):
        lines = list(difflib.unified_diff(recorded, now, "recorded", "now", n=1, lineterm=""))
        return [f"{where or 'lines'}:", *(f"    {line}" for line in lines)] if lines else []
    if len(recorded) != len(now):
        return [f"{where}: {len(recorded)} entries were recorded, now there are {len(now)}"]
    return [
        line for i, pair in enumerate(zip(recorded, now, strict=True)) for line in differences(*pair, f"{where}.{i}")
    ]


def _short(value: Any) -> str:
    text = repr(value)
    if isinstance(value, Named):
        text += f" ({'; '.join(value.names[:8])}{'; ...' if len(value.names) > 8 else ''})"
    return text if len(text) <= 600 else f"{text[:600]} ..."

"""Where the crops of a batch are in the body: slices of their volumes with the crops as boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnssl.data.loader import reading
from nnssl.methods.base import Batch, Method
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.pretraining.setup import Setup

_SHOWN = 4  # volumes
_FEW = 4  # crops whose slices are marked; more of them are thin boxes
_GREY = (1.0, 99.5)  # percentiles of a slice that are black and white
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_PLANES = {"A": "coronal", "L": "sagittal"}

Floats = NDArray[np.float64]


class Whole(Protocol):
    """What an overview needs of a volume."""

    @property
    def size(self) -> Any:
        """(3,) voxels."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """In mm."""

    def read(self, start: Any, stop: Any) -> Any:
        """Values (C, *size) of a box."""


@dataclass(frozen=True)
class Outline:
    """The box of a crop in an overview.

    Args:
        number: of the crop.
        box: (row, column, height, width) in pixels.
        cut: whether the overview's slice goes through the crop.
        slices: lines (row, column, row, column), the slices that the pictures below show.
    """

    number: int
    box: tuple[float, float, float, float]
    cut: bool
    slices: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class Overview:
    """A slice of a volume with the crops in it.

    Args:
        image: (rows, columns).
        title: of the picture.
        outlines: of the crops.
        values: that are black and white.
        aspect: height of a pixel over its width.
        sides: letters left, right, at the top and at the bottom; none where the orientation is unknown.
        width_mm: of the image; None where the size of a voxel is unknown.
    """

    image: NDArray[Any]
    title: str
    outlines: Sequence[Outline]
    values: tuple[float, float]
    aspect: float = 1.0
    sides: str = ""
    width_mm: float | None = None


@dataclass(frozen=True)
class _Array:
    """An array (Z, Y, X) as a volume."""

    values: NDArray[Any]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def size(self) -> NDArray[np.int64]:
        return np.asarray(self.values.shape)

    def read(self, start: Any, stop: Any) -> Any:
        return self.values[tuple(map(slice, start, stop))][None]


def overviews(
    setup: Setup, method: type[Method], batch: Batch, cases: Sequence[str], panels: Sequence[Sequence[Panel]]
) -> list[Overview]:
    """A slice of each of the first volumes of a batch, with its crops as boxes and the slices that the panels show.

    Args:
        setup: of the run.
        method: of the run.
        batch: on the CPU, augmented.
        cases: label of each sample's volume.
        panels: of the batch.
    """
    letters = "" if setup.orientation is None else _letters(setup.orientation, setup.plans)
    shown = []
    for own in method.whereabouts(batch, setup.config)[:_SHOWN]:
        slices = {(panel.crop[1], panel.crop[2]) for row in panels for panel in row
                  if panel.crop is not None and panel.crop[0] == own.sample}  # fmt: skip
        dataset, name = (cases[own.sample] if own.volume is None else setup.train.label(own.volume)).split("/", 1)
        title = f"{own.name}: {name}" if own.name else name
        if own.image is not None:
            shown.append(overview(own, _Array(own.image), letters, title, slices))
            continue
        folders = (*setup.train.folders, *setup.val.folders)
        folder = next(f for f in folders if f.name == dataset and (f.images / f"{name}.b2nd").is_file())
        with reading(folder, name):
            shown.append(overview(own, folder.open(name), letters, title, slices))
    return shown


def _letters(orientation: str, plans: Mapping[str, Any]) -> str:
    """Where the axes of the preprocessed volumes lead to, such as SPL."""
    return "".join(orientation[2 - axis] for axis in plans.get("transpose_forward", [0, 1, 2]))


def overview(own: Whereabouts, volume: Whole, letters: str, title: str, slices: set[tuple[int, float]]) -> Overview:
    """The slice through the middle of the first crop that shows the slices of the panels as lines, coronal if possible.

    Args:
        own: crops of the volume.
        volume: that they are of.
        letters: where its axes lead to, such as SPL; none where unknown: the slice across the second axis then.
        title: of the picture.
        slices: numbers of crops, and where in them the panels' slices are, from 0 to 1 along the first axis.
    """
    size, (depth, rows, columns) = np.asarray(volume.size), _axes(letters)
    middle = int(np.clip(own.boxes[0, :, depth].mean(), 0, size[depth] - 1))
    start, stop = np.zeros(3, dtype=np.int64), size.copy()
    start[depth], stop[depth] = middle, middle + 1
    image = volume.read(start, stop)[0].take(0, depth)
    image = image if rows < columns else image.T
    turned = {axis: letters[axis : axis + 1] in [*wanted] for axis, wanted in ((rows, "SA"), (columns, "RA"))}
    for place, axis in enumerate((rows, columns)):
        image = np.flip(image, place) if turned[axis] else image

    def along(axis: int, first: float, last: float) -> tuple[float, float]:
        """The first and the last edge in the picture, in pixels."""
        return (size[axis] - last, size[axis] - first) if turned[axis] else (first, last)

    outlines = []
    for number, (first, last) in zip(own.crops, own.boxes.astype(np.float64), strict=True):
        (top, bottom), (left, right) = (along(axis, first[axis], last[axis]) for axis in (rows, columns))
        lines = []
        for _, share in sorted(line for line in slices if line[0] == number) if len(own.boxes) <= _FEW else []:
            (at, _), across = along(0, *[first[0] + share * (last[0] - first[0])] * 2), (left, right, top, bottom)
            lines.append((at, across[0], at, across[1]) if rows == 0 else (across[2], at, across[3], at))
        cut = bool(first[depth] < middle + 1 and last[depth] > middle)
        outlines.append(Outline(number, (top, left, bottom - top, right - left), cut, lines))
    ends = [_ends(letters[axis : axis + 1], turned[axis]) for axis in (columns, rows)]
    plane = next(
        (name for letter, name in _PLANES.items() if letters[depth : depth + 1] in [letter, _OPPOSITE[letter]]), ""
    )
    named = f"{plane} slice {middle}" if plane else f"slice {middle} across axis 2"
    low, high = np.percentile(image, _GREY)
    known = own.image is None
    return Overview(image, f"{title}\n{named}", outlines, (float(low), float(high)),
                    volume.spacing[rows] / volume.spacing[columns], "".join(ends),
                    float(size[columns] * volume.spacing[columns]) if known else None)  # fmt: skip


def _axes(letters: str) -> tuple[int, int, int]:
    """The axes across the slice, downwards and to the right; the first axis is in the slice."""
    depth = next((axis for wanted in ("AP", "LR") for axis in (1, 2) if letters[axis : axis + 1] in [*wanted]), 1)
    rows, columns = sorted({0, 1, 2} - {depth}, key=lambda axis: (letters[axis : axis + 1] not in [*"SI"], axis))
    return depth, rows, columns


def _ends(letter: str, turned: bool) -> str:
    """Letters of the sides where an axis of the picture begins and ends; none where unknown."""
    if not letter:
        return ""
    return letter + _OPPOSITE[letter] if turned else _OPPOSITE[letter] + letter

"""What a probe reads of a labelled dataset: crops to learn from, windows to measure on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box, sliding_window_boxes
from nnssl.data.loader import reading
from nnssl.data.volumes import BloscVolume, VolumeFolder

Values = tuple[int, ...]  # of a label map


@dataclass(frozen=True)
class ProbeData:
    """A labelled dataset, preprocessed as the run's own; plain and picklable.

    Args:
        folder: its preprocessed volumes, with nnU-Net's `case_seg.b2nd` and `case.pkl` beside the images.
        train: cases that the heads learn from.
        held_out: cases whose Dice is computed.
        labels: the values of each foreground label by name, in the order of dataset.json; a region has several.
        ignore: value of voxels that count for nothing, None where there is none.
        every: epochs between evaluations; None for the default (`nnssl.pretraining.probe_cost`).
    """

    folder: VolumeFolder
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    labels: Mapping[str, Values]
    ignore: int | None = None
    every: int | None = None

    @property
    def values(self) -> Values:
        """Values of the label maps that the heads tell apart, ascending: background 0 first."""
        return (0, *sorted({value for values in self.labels.values() for value in values}))

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same where a run is continued; plain types."""
        return {
            "dataset": self.folder.name,
            "train_cases": list(self.train),
            "held_out_cases": list(self.held_out),
            "labels": {name: list(values) for name, values in self.labels.items()},
            "ignore": self.ignore,
            "every": self.every,
        }


class Window(NamedTuple):
    """A patch of a case."""

    case: str
    box: Box


class HeldOutWindows:
    """Windows of all held-out cases in the order of their worth: the cases take turns.

    Within a case those come first that hold most of its labels, every label counting the same.
    """

    def __init__(self, cases: LabelledCases) -> None:
        ordered = [[Window(case, box) for box in _by_worth(cases, case)] for case in cases.data.held_out]
        self._windows = [window for turn in zip_longest(*ordered) for window in turn if window is not None]
        self.least = len(ordered)

    def __len__(self) -> int:
        return len(self._windows)

    def first(self, count: int) -> list[Window]:
        """The first ones, at least one a case."""
        return self._windows[: max(count, self.least)]


def _by_worth(cases: LabelledCases, case: str) -> list[Box]:
    boxes, places = cases.windows(case), cases.places(case)
    worth = [
        -sum(float(np.mean(((voxels >= box.start) & (voxels < box.stop)).all(1))) for voxels in places) for box in boxes
    ]
    return [boxes[i] for i in np.argsort(worth, kind="stable")]


_FOREGROUND = 0.5  # of the crops are centred on a voxel of a random label
_LOCATIONS = 1000  # voxels kept of a label of a case
_STREAM = 17  # tells the probe's random numbers from the run's


@dataclass(frozen=True)
class LabelledCrop:
    """A patch with its classes.

    Args:
        image: (C, Z, Y, X) float32, the plans' normalised values, zero outside the volume.
        classes: (Z, Y, X) int64 positions in `ProbeData.values`, -1 where a voxel counts for nothing.
    """

    image: np.ndarray
    classes: np.ndarray


class LabelledCases:
    """Reads the cases of a `ProbeData`; what it draws is a pure function of its arguments.

    Args:
        data: the dataset.
        patch: (Z, Y, X) voxels of every crop; without one, nothing can be read but what is labelled where.
    """

    def __init__(self, data: ProbeData, patch: Sequence[int] = ()) -> None:
        self.data, self.patch = data, np.asarray(patch)
        self._places: dict[str, list[np.ndarray]] = {}
        largest = max(*data.values, data.ignore or 0)
        self._class_of = np.zeros(largest + 1, dtype=np.int64)
        self._class_of[list(data.values)] = np.arange(len(data.values))
        if data.ignore is not None:
            self._class_of[data.ignore] = -1

    def check(self) -> None:
        """Make sure that there is something to learn and to measure.

        Raises:
            UserError: no training or no held-out case has a foreground voxel (made before the dataset had labels?).
        """
        for kind, cases in (("training", self.data.train), ("held-out", self.data.held_out)):
            if not any(self.places(case) for case in cases):
                images = self.data.folder.images
                raise UserError(f"no preprocessed {kind} case of {self.data.folder.name} has a labelled voxel; if it "
                                f"was preprocessed before it had labels, delete {images} and run this "
                                f"again")  # fmt: skip

    def places(self, case: str) -> list[np.ndarray]:
        """Voxels (N, 3) of every foreground label that the case has, as nnU-Net's preprocessing sampled them."""
        if case not in self._places:
            with open(self.data.folder.images / f"{case}.pkl", "rb") as file:
                found = pickle.load(file).get("class_locations", {})
            wanted = [key for values in self.data.labels.values() for key in (values, *values[: len(values) == 1])]
            arrays = [np.asarray(found[key])[:, 1:] for key in wanted if len(found.get(key, ()))]
            # copies: a slice would keep all that nnU-Net sampled, up to megabytes a case, alive for the whole run
            self._places[case] = [a[:: -(-len(a) // _LOCATIONS)].astype(np.int32) for a in arrays]
        return self._places[case]

    def crop(self, seed: int, number: int) -> LabelledCrop:
        """Crop `number` of the training cases."""
        rng = np.random.default_rng([seed, _STREAM, number])
        case = self.data.train[int(rng.integers(len(self.data.train)))]
        volume, places = self._open(case), self.places(case)
        size = volume.size
        room = np.maximum(size - self.patch, 0)
        if places and rng.random() < _FOREGROUND:
            voxels = places[int(rng.integers(len(places)))]
            start = np.clip(voxels[int(rng.integers(len(voxels)))] - self.patch // 2, 0, room)
        else:
            start = rng.integers(0, room, endpoint=True)
        return self._read(volume, start)

    def windows(self, case: str) -> list[Box]:
        """Patches side by side that cover a case; on an axis on which it is smaller, all of it."""
        return sliding_window_boxes(self._open(case).size.tolist(), self.patch.tolist(), (0, 0, 0))

    def window(self, case: str, box: Box) -> tuple[LabelledCrop, tuple[slice, ...]]:
        """The patch of a window of `windows`, and which part of it lies in the volume."""
        volume = self._open(case)
        before = _padding(volume.size, self.patch)
        inside = tuple(slice(int(b), int(b + e)) for b, e in zip(before, box.stop - box.start, strict=True))
        return self._read(volume, box.start), inside

    def _read(self, volume: BloscVolume, start: np.ndarray) -> LabelledCrop:
        begin = start - _padding(volume.size, self.patch)
        stop = begin + self.patch
        with reading(self.data.folder, volume.case):
            labels, image = volume.read_labels(begin, stop), volume.read(begin, stop)
        if (unknown := int(labels.max())) >= len(self._class_of):
            raise UserError(f"{self.data.folder.name}: the label map of {volume.case} holds {unknown}, which its "
                            f"dataset.json does not name; mend the file and preprocess the dataset anew")  # fmt: skip
        return LabelledCrop(image, self._class_of[np.maximum(labels, 0)])

    def _open(self, case: str) -> BloscVolume:
        with reading(self.data.folder, case):
            return self.data.folder.open(case)  # a file stays open no longer than it is read: datasets may be large


def _padding(size: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Voxels (3,) of a patch before a volume that is smaller: it lies in the middle, as nnU-Net pads."""
    return np.maximum(patch - size, 0) // 2

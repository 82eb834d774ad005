"""`-probe`: a labelled dataset with the run's own plans; crops of it to learn from, windows to measure on."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box, sliding_window_boxes
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.guard import Images, check_datasets
from nnssl.data.loader import reading
from nnssl.data.plan_and_preprocess import PreparedDatasets, prepare_datasets
from nnssl.data.raw import RawDataset, list_dataset
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.pretraining.held_out import hold_out

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
        every: epochs between evaluations; None for the default (`nnssl.pretraining.probe.evaluation_interval`).
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
        """What must stay the same when a run is continued; plain types."""
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
        patch: (Z, Y, X) voxels of every crop; without one, only the places of labels can be read.
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
        """Patches side by side that cover a case; on an axis shorter than the patch, the whole axis."""
        return sliding_window_boxes(self._open(case).size.tolist(), self.patch.tolist(), (0, 0, 0))

    def held_out_windows(self) -> list[Window]:
        """Windows of all held-out cases in the order of their worth: the cases take turns.

        Within a case those come first that hold most of its labels, every label counting the same.
        """
        ordered = [[Window(case, box) for box in self._by_worth(case)] for case in self.data.held_out]
        return [window for turn in zip_longest(*ordered) for window in turn if window is not None]

    def window(self, case: str, box: Box) -> tuple[LabelledCrop, tuple[slice, ...]]:
        """The patch of a window of `windows`, and which part of it is inside the volume."""
        volume = self._open(case)
        before = _padding(volume.size, self.patch)
        inside = tuple(slice(int(b), int(b + e)) for b, e in zip(before, box.stop - box.start, strict=True))
        return self._read(volume, box.start), inside

    def _by_worth(self, case: str) -> list[Box]:
        boxes, places = self.windows(case), self.places(case)
        worth = [
            -sum(float(np.mean(((voxels >= box.start) & (voxels < box.stop)).all(1))) for voxels in places)
            for box in boxes
        ]
        return [boxes[i] for i in np.argsort(worth, kind="stable")]

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
    """Voxels (3,) of a patch before a smaller volume, which is centred in it, as nnU-Net pads."""
    return np.maximum(patch - size, 0) // 2


HELD_OUT = 0.2  # of the cases, where there is no splits_final.json
MOST_HELD_OUT = 4  # cases whose Dice is computed: a sliding window over all of a large dataset would cost hours


def check_probe(dataset: int | str, first: int | str, every: int | None, allow: bool = False) -> RawDataset:
    """The labelled dataset, if a run on `first` can be probed on it; nothing is preprocessed for the answer.

    Args:
        dataset: number or name of the labelled dataset.
        first: of the run's first dataset.
        every: epochs between evaluations; None for the default.
        allow: whether it may be of another modality.

    Raises:
        UserError: there is no such dataset, it has no labels or other channels (`nnssl.data.guard`), or `every` is
            below 1.
    """
    if every is not None and every < 1:
        raise UserError(f"-probe_every takes a number of epochs from 1 on, not {every}")
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    own, listed = (list_dataset(raw, name, preprocessed / name) for name in map(dataset_name, (first, dataset)))
    if not listed.dataset_json["labels"].keys() - {"background", "ignore"} or not (
        listed.labelled if listed.cases else (preprocessed / listed.name / "gt_segmentations").is_dir()
    ):
        raise UserError(f"{listed.name} has no labels to probe with; put them into {listed.folder / 'labelsTr'} and "
                        f"name them in its dataset.json, or choose a labelled dataset with -probe")  # fmt: skip
    # what it warns of is said when the dataset gets the plans of the run
    check_datasets(Images(own.name, own.channel_names), Images(listed.name, listed.channel_names), allow)
    return listed


def prepare_probe(
    dataset: int | str,
    prepared: PreparedDatasets,
    configuration: str,
    every: int | None,
    num_processes: int | None,
    may_preprocess: bool,
    allow_other_intensities: bool = False,
) -> ProbeData:
    """The labelled dataset of a probe, with the plans, spacing and intensities of the run.

    A dataset of the run is taken as it is. Another one gets the plans of the run's first dataset and its volumes under
    the names that `nnssl_plan_and_preprocess -d FIRST PROBE` and `nnssl_transfer` use too, so that they are made once.
    Its held-out cases are those of fold 0 of its splits_final.json, else a fixed fifth of its cases; the Dice of at
    most four of them is computed.

    Args:
        dataset: number or name.
        prepared: the datasets of the run.
        configuration: of the plans.
        every: epochs between evaluations; None for the default.
        num_processes: for preprocessing, None for the default.
        may_preprocess: False where several processes would do it at once; everything must be there then.
        allow_other_intensities: whether it may be of another modality than the datasets of the run.

    Raises:
        UserError: fewer than two of its cases are ready, or what `check_probe`, `prepare_datasets` and
            `LabelledCases.check` raise.
    """
    first = prepared.folders[0].name
    listed = check_probe(dataset, first, every, allow_other_intensities)
    labels, ignore = _labels(listed)
    folder = next((f for f in prepared.folders if f.name == listed.name), None)
    if folder is None:
        plans = prepared.plans["plans_name"]
        both = prepare_datasets([first, listed.name], plans, configuration, num_processes, may_preprocess,
                                allow_other_intensities, "the probe ")  # fmt: skip
        folder = next(f for f in both.folders if f.name == listed.name)
    train, held_out = _split(folder)
    data = ProbeData(folder, train, held_out, labels, ignore, every)
    LabelledCases(data).check()
    return data


def _labels(listed: RawDataset) -> tuple[dict[str, Values], int | None]:
    """Foreground labels and the value to ignore."""
    entries = {str(k): v for k, v in listed.dataset_json["labels"].items() if k != "background"}
    ignore = entries.pop("ignore", None)
    try:
        labels = {k: tuple(int(v) for v in (e if isinstance(e, list) else [e])) for k, e in entries.items()}
        return labels, None if ignore is None else int(ignore)
    except (TypeError, ValueError):
        raise UserError(f"the labels of {listed.name} must be numbers or lists of numbers; mend its "
                        f"dataset.json") from None  # fmt: skip


def _split(folder: VolumeFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out cases."""
    cases = folder.cases()
    if len(cases) < 2:
        raise UserError(f"{folder.name} has {len(cases)} preprocessed cases in {folder.images}, and a probe needs two: "
                        f"one to learn from and one to measure on")  # fmt: skip
    shuffled = sorted(cases, key=lambda case: hashlib.blake2b(f"{folder.name}/{case}".encode()).digest())
    if (folder.images.parent / "splits_final.json").is_file():
        first, second = hold_out([folder], "0", 0)
        train, held = {str(c) for c in first.names}, {str(c) for c in second.names}
        if not held:
            raise UserError(f"none of the held-out cases of fold 0 in {folder.images.parent / 'splits_final.json'} is "
                            f"preprocessed; delete the file, nnUNetv2_train writes it anew")  # fmt: skip
    else:
        held = set(shuffled[: max(1, round(HELD_OUT * len(cases)))])
        train = set(cases) - held
    scored = [case for case in shuffled if case in held][:MOST_HELD_OUT]
    return tuple(sorted(train)), tuple(sorted(scored))

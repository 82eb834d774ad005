"""The labelled dataset of an online probe, and what a checkpoint remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.data.volumes import VolumeFolder

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
        every: epochs between evaluations; None for the default (`nnssl.probing.budget`).
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

"""What a table of docs/results.md is made of: datasets, pretrainings, trainings, and what is known of the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Settings = Mapping[str, str]
RANDOM = "random"
# Levels that a pretraining's features come from. A random network for comparison must use the same.
ENCODER, DECODER = "pimpic", "vox2vec"


@dataclass(frozen=True)
class Row:
    """One row: trainings of the same network, data and length.

    Args:
        name: of the row.
        trainer: class for nnUNetv2_train.
        start: method of the pretraining, `random`, or None for a trainer that starts from nothing.
        settings: variables of the trainings; `{out}` is the folder of all files.
        levels: method whose plans a row without a pretraining takes.
        copy: ending of plans of its own, with volumes of their own; empty for those that all rows share.
    """

    name: str
    trainer: str
    start: str | None
    settings: Settings
    levels: str = DECODER
    copy: str = ""

    @property
    def planned(self) -> str:
        """Method whose transferred plans the row takes."""
        return self.levels if self.start in (None, RANDOM) else str(self.start)


@dataclass(frozen=True)
class Table:
    """One table of the page.

    Args:
        name: of the table and of its folder.
        title: on the page.
        source: dataset of the pretraining, its number.
        target: labelled dataset, its number.
        cut_from: number of the dataset that the labelled one is a copy of, see `pays_crops.py`; None if it is none.
        preset: plans that the network comes from.
        plans: name of the plans of the pretraining.
        patch: (z, y, x) of the plans in voxels; None keeps the preset's.
        pretrainings: options of nnssl_pretrain by method.
        rows: the first one is the baseline.
        cases: numbers of labelled cases.
        test: as of nnssl_benchmark.
        fold: of the pretraining.
        probed: whether a probe on the labelled dataset follows the pretrainings.
        times_epochs: how many times as long the pretrainings are; other than 1 in a folder of their own.
        seeds: pretrainings and trainings.
        floors: Dice by structure that needs no look at the image.
        floor: what gives those.
        note: sentence below the title.
    """

    name: str
    title: str
    source: int
    target: int
    preset: str
    plans: str
    pretrainings: Mapping[str, str]
    rows: tuple[Row, ...]
    cases: tuple[int, ...]
    test: str
    cut_from: int | None = None
    patch: tuple[int, int, int] | None = None
    fold: Literal["all", "0"] = "all"
    probed: bool = True
    times_epochs: int = 1
    seeds: int = 3
    floors: Mapping[str, float] = field(default_factory=dict)
    floor: str = ""
    note: str = ""

    @property
    def baseline(self) -> str:
        """Name of the row that the others are compared with."""
        return self.rows[0].name

    @property
    def longer(self) -> str:
        """Ending of the names of pretrainings that are longer than the other tables'."""
        return "" if self.times_epochs == 1 else f"_{self.times_epochs}_times"

    def transferred(self, method: str, copy: str = "") -> str:
        """Name of the plans that a pretraining leaves for the target."""
        return f"{self.plans}From{self.source}_{method}{copy}"

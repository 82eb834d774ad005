"""What a call of `plan_and_preprocess` is asked for and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class PreparedDataset:
    """What `plan_and_preprocess` leaves of one dataset.

    Args:
        name: such as Dataset500_Thorax.
        plans_name: the plans are `folder.parent / f"{plans_name}.json"`.
        configuration: of the plans.
        folder: nnU-Net's folder of the volumes.
        body_folder: of the body masks.
        cases: volumes that are ready (of this part), sorted; none where only plans were asked for.
        left_out: reason by case.
    """

    name: str
    plans_name: str
    configuration: str
    folder: Path
    body_folder: Path
    cases: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """Folders and options of a call, see `plan_and_preprocess`."""

    raw: Path
    preprocessed: Path
    configuration: str
    num_processes: int
    num_parts: int
    part_id: int
    clean: bool
    strict: bool
    show_progress: bool
    overwrite_volumes: bool = False

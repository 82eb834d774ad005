"""`annotated_labels` against the label maps: what could be listed, and what contradicts the list.

The way is propose --write, edit the list, check --write, train; the last line always names the next step.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase, UserError
from nnssl.core.files import read_json
from nnssl.core.schemas import DatasetFile
from nnssl.data.annotated_labels import (
    KEY,
    AnnotatedLabels,
    read_annotated_labels,
    refuse_unknown_cases,
    write_annotated_labels,
)
from nnssl.data.check_case import check_label_values, read_label
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.pool import default_processes, map_cases
from nnssl.data.raw import RawCase, RawDataset, label_values, read_raw_dataset
from nnssl.data.reader import find_reader

_NAMED = 5  # label maps that an error names

logger = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Proposal:
    """What `propose_annotated_labels` found.

    Args:
        listed: labels that occur, by case, for cases in which some do not.
        present: number of cases in which a label occurs, by label.
        files: the dataset.json that were written.
    """

    listed: dict[str, list[str]]
    present: dict[str, int]
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Contradiction:
    """Voxels of a label in a case whose list says that it is not annotated there."""

    case: str
    label: str
    voxels: int


def propose_annotated_labels(dataset_id: int | str, write: bool = False, num_processes: int | None = None) -> Proposal:
    """List for each case the labels that occur in its label map, where that is not all of them.

    An annotated organ that is absent looks like one that nobody annotated: a person must check the list.

    Args:
        dataset_id: number or name.
        write: put the list into the dataset.json of nnUNet_raw and, where there is one, of nnUNet_preprocessed.
        num_processes: None for nnU-Net's number, at most one a core.

    Raises:
        UserError: the dataset has no label maps, or some that cannot be used; with `write`, it has a list already.
    """
    dataset, home = _labelled_dataset(dataset_id)
    file = dataset.folder / "dataset.json"
    if write and KEY in dataset.dataset_json:
        raise UserError(f'{file} has "{KEY}" already, and nothing is written over it; edit it there, and '
                        f"{_type(dataset, 'check', '--write')}")  # fmt: skip
    if write and _list_of_training(home) is not None:
        raise _no_list(dataset, home)
    labels = read_annotated_labels({**dataset.dataset_json, KEY: {}}, file).labels
    found, unreadable = _voxel_counts(dataset, list(dataset.cases.values()), num_processes)
    _refuse(unreadable, dataset)  # a case that is not on the list counts as annotated completely
    occurring = {
        case: [name for name, values in labels.items() if values & counts.keys()] for case, counts in found.items()
    }
    listed = {case: names for case, names in occurring.items() if len(names) < len(labels)}
    present = {name: sum(name in names for names in occurring.values()) for name in labels}
    files = write_annotated_labels([dataset.folder, home], listed) if write and listed else []
    proposal = Proposal(listed, present, files)
    _report(dataset, proposal)
    logger.info("%s", _after_proposal(dataset, proposal))
    return proposal


def check_annotated_labels(
    dataset_id: int | str, write: bool = False, num_processes: int | None = None
) -> list[Contradiction]:
    """Find voxels of labels that `annotated_labels` says are not annotated in their case.

    Args:
        dataset_id: number or name.
        write: if there are none, copy the list of nnUNet_raw to the dataset.json in nnUNet_preprocessed, which
            nnU-Net's training reads.
        num_processes: None for nnU-Net's number, at most one a core.

    Returns:
        All of them, by case; nothing is copied if there are any.

    Raises:
        UserError: there is no list, or a wrong one (unknown labels or cases); label maps cannot be used; or the list in
            nnUNet_preprocessed is another one, and `write` is not set.
    """
    dataset, home = _labelled_dataset(dataset_id)
    file = dataset.folder / "dataset.json"
    if KEY not in dataset.dataset_json:
        raise _no_list(dataset, home)
    annotations = read_annotated_labels(dataset.dataset_json, file)
    refuse_unknown_cases(annotations, dataset.cases.keys() | dataset.left_out.keys(), file)
    partly = [dataset.cases[case] for case in annotations.partial() if case in dataset.cases]
    read, unreadable = _voxel_counts(dataset, partly, num_processes)
    found = [
        contradiction for case, counts in read.items() for contradiction in _contradictions(annotations, case, counts)
    ]
    for contradiction in found:
        logger.warning("%s: %d voxels of %s, which is not listed there", contradiction.case, contradiction.voxels,
                       contradiction.label)  # fmt: skip
    logger.info("%s: %d of %d cases are not completely annotated; %d of them contradict their label maps", dataset.name,
                len(annotations.partial()), len(dataset.cases), len({c.case for c in found}))  # fmt: skip
    _refuse(unreadable, dataset)
    if found:
        nothing = "nothing was copied to where training reads the list: " if write else ""
        logger.error("%sadd these labels to the lists of their cases in %s, or remove their voxels from the label "
                     "maps; then %s", nothing, file, _type(dataset, "check", "--write"))  # fmt: skip
    else:
        _bring_to_training(dataset, home, write)
    return found


def raw_contradicts(annotations: AnnotatedLabels, name: str, case: str) -> bool | None:
    """Whether the raw label map of a case contradicts the list; None where it is gone.

    One that cannot be read does, as in `check_annotated_labels`.
    """
    raw = os.environ.get("nnUNet_raw")
    if not raw or not (Path(raw) / name).is_dir():
        return None
    try:
        dataset, _ = _labelled_dataset(name)
        if case not in dataset.cases:
            return None
        values = label_values(dataset.dataset_json)
        found = count_voxels(dataset.cases[case], find_reader(dataset), values)
    except UserError:
        return True
    return found.reason is not None or bool(_contradictions(annotations, case, found.voxels))


def _labelled_dataset(dataset_id: int | str) -> tuple[RawDataset, Path]:
    """The raw dataset, and its folder in nnUNet_preprocessed."""
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    name = dataset_name(dataset_id)
    if not (raw / name).is_dir():
        raise UserError(f"{raw / name} is missing: the label maps are looked at there; bring the raw dataset back")
    dataset = read_raw_dataset(raw, name)
    if not dataset.labelled:
        raise UserError(f"{name} has no label maps (labelsTr); partial labels are for datasets that have some")
    return dataset, preprocessed / name


def _voxel_counts(
    dataset: RawDataset, cases: Sequence[RawCase], num_processes: int | None
) -> tuple[dict[str, dict[int, int]], dict[str, str]]:
    """Voxels by value in the label map of each case, cases in order; and why others cannot be used."""
    processes = default_processes(num_processes)
    count = partial(count_voxels, reader=find_reader(dataset), allowed=label_values(dataset.dataset_json))
    title = f"label maps of {dataset.name}"
    results = {found.case: found for found in map_cases(count, cases, processes, title)}
    ordered = [results[case.name] for case in cases]
    return {f.case: f.voxels for f in ordered if f.reason is None}, {f.case: f.reason for f in ordered if f.reason}


@dataclass(frozen=True)
class LabelMap:
    """Voxels by value in the label map of a case, or the reason for which it cannot be used."""

    case: str
    voxels: dict[int, int] = field(default_factory=dict)
    reason: str | None = None


def count_voxels(case: RawCase, reader: Any, allowed: Collection[int]) -> LabelMap:
    """Read and count a label map.

    Args:
        case: with a label.
        reader: nnU-Net's class.
        allowed: values that it may hold.
    """
    try:
        label, _ = read_label(str(case.label), reader)
        check_label_values(label, allowed)
    except BadCase as bad:
        return LabelMap(case.name, reason=str(bad))
    counts = np.bincount(label.astype(np.int32).ravel())
    return LabelMap(case.name, {int(value): int(counts[value]) for value in np.flatnonzero(counts)})


def _refuse(unreadable: dict[str, str], dataset: RawDataset) -> None:
    if unreadable:
        shown = list(unreadable.items())[:_NAMED]
        named = "; ".join(f"the label map {dataset.cases[case].label} cannot be read ({why})" for case, why in shown)
        more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise UserError(f"{named}{more}; mend the files: the list of {dataset.name} needs all of them")


def _contradictions(annotations: AnnotatedLabels, case: str, counts: dict[int, int]) -> list[Contradiction]:
    allowed = annotations.values(case)
    found = []
    for value in sorted(counts.keys() - allowed):
        names = [name for name, values in annotations.labels.items() if value in values]
        if names:  # neither background nor ignore
            found.append(Contradiction(case, " or ".join(names), counts[value]))
    return found


def _bring_to_training(dataset: RawDataset, home: Path, write: bool) -> None:
    """Make nnUNet_preprocessed have the list, or say how."""
    file, train = home / "dataset.json", _now_train(dataset)
    given = dataset.dataset_json[KEY]
    if not file.is_file():
        logger.info("the list is right; planning will copy it to where training reads it: type: "
                    "nnssl_plan_and_preprocess -d %s", dataset.name)  # fmt: skip
    elif _list_of_training(home) == given:
        logger.info("training reads the same list in %s; %s", file, train)
    elif write:
        write_annotated_labels([home], given)
        logger.info("written to %s, which training reads; %s", file, train)
    else:
        raise UserError(f'{file}, which training reads, has another "{KEY}" than {dataset.folder / file.name}; '
                        f"{_type(dataset, 'check', '--write')}")  # fmt: skip


def _list_of_training(home: Path) -> Any:
    """The list in nnUNet_preprocessed; None without one."""
    file = home / "dataset.json"
    return read_json(file, DatasetFile).get(KEY) if file.is_file() else None


def _no_list(dataset: RawDataset, home: Path) -> UserError:
    file = dataset.folder / "dataset.json"
    if _list_of_training(home) is not None:
        return UserError(f'{file} has no "{KEY}", and {home / file.name}, which training reads, has; copy it from '
                         f"there, and {_type(dataset, 'check')}")  # fmt: skip
    return UserError(f'{file} has no "{KEY}", so that every case counts as completely annotated and there is nothing '
                     f"to check; if some are not, {_type(dataset, 'propose', '--write')}")  # fmt: skip


def _type(dataset: RawDataset, action: str, flag: str = "") -> str:
    return f"type: nnssl_annotated_labels {action} -d {dataset.name} {flag}".rstrip()


def _now_train(dataset: RawDataset) -> str:
    return f"now train: nnUNetv2_train {dataset.name} CONFIGURATION FOLD -tr nnUNetTrainer_PartialLabels"


def _report(dataset: RawDataset, proposal: Proposal) -> None:
    logger.info("%s: %d label maps", dataset.name, len(dataset.cases))
    for name, count in proposal.present.items():
        logger.info("  %s: in %d of them", name, count)
    if not proposal.listed:
        return
    lines = [f"    {json.dumps(case)}: {json.dumps(names)}" for case, names in proposal.listed.items()]
    logger.info('"%s": {\n%s\n}', KEY, ",\n".join(lines))
    logger.warning("a label map does not tell an organ that is not there from one that nobody annotated: look at the "
                   "list, and add a label wherever its absence was seen by somebody")  # fmt: skip


def _after_proposal(dataset: RawDataset, proposal: Proposal) -> str:
    """What comes next."""
    file = dataset.folder / "dataset.json"
    if proposal.files:
        return (f"written to {' and '.join(map(str, proposal.files))}; edit the list in {file}, and "
                f"{_type(dataset, 'check', '--write')}")  # fmt: skip
    if KEY in dataset.dataset_json:
        return f"{file} has a list already, which stays as it is; {_type(dataset, 'check')}"
    if proposal.listed:
        return f"to put it into dataset.json, {_type(dataset, 'propose', '--write')}"
    return f"every label is in every label map: no list is needed; {_now_train(dataset)}"

"""Copies in nnUNet_preprocessed that nnU-Net's training reads: dataset.json, the split, label maps."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json, replacing, write_json
from nnssl.core.schemas import DatasetFile, SplitsFile
from nnssl.data.annotated_labels import KEY
from nnssl.data.inventory import named
from nnssl.data.planning import existing_plans
from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.reader import READER, REORIENTING, reorients
from nnssl.data.records import labels_digest
from nnssl.data.storage import dataset_lock

SPLIT = "splits_final.json"

logger = logging.getLogger("nnssl")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its time, so that the target is the old or the new one at every moment."""
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as temporary:
        shutil.copy2(source, temporary)


def copied_dataset_json(home: Path) -> dict[str, Any] | None:
    """Content of the copy of dataset.json; None without one."""
    file = home / "dataset.json"
    if not file.is_file():
        return None
    return dict(read_json(file, DatasetFile, "delete it, it is copied anew from nnUNet_raw"))


def changes_of_dataset_json(dataset: RawDataset, home: Path, reorient: bool) -> list[str] | None:
    """Keys in which the copy differs from what it should be; None without a copy.

    The copy keeps its own `annotated_labels`, which `nnssl_annotated_labels check --write` brings after a check,
    and its own reader that turns images, for the plans that use it.
    """
    copy = copied_dataset_json(home)
    if copy is None:
        return None
    wanted = _wanted(dataset, home, copy, reorient)
    return [k for k in (wanted | copy) if wanted.get(k) != copy.get(k)]


def follow_dataset_json(dataset: RawDataset, home: Path, reorient: bool) -> None:
    """Make the copy what the raw dataset's file is, and say what has changed in it.

    Args:
        dataset: raw.
        home: the dataset's folder in nnUNet_preprocessed.
        reorient: whether the copy says that images are turned to RAS as they are read.

    Raises:
        UserError: nnU-Net could not work with its labels.
    """
    changed = changes_of_dataset_json(dataset, home, reorient)
    if changed != []:
        _check_labels(dataset)
    if changed is None:
        copy_file(dataset.folder / "dataset.json", home / "dataset.json")
        if reorient and not reorients(dataset.dataset_json):
            write_json(home / "dataset.json", {**dataset.dataset_json, READER: REORIENTING})
    elif changed:
        write_json(home / "dataset.json", _wanted(dataset, home, copied_dataset_json(home) or {}, reorient))
        logger.info("%s: dataset.json in nnUNet_raw has changed (%s), and its copy in %s follows it", dataset.name,
                    ", ".join(changed), home)  # fmt: skip


def follow_raw(dataset: RawDataset, home: Path, reorient: bool, before_labels_change: Callable[[], object]) -> None:
    """Make the copies of dataset.json, and of a split that comes with the raw dataset, what they are there.

    Arguments and errors as of `follow_dataset_json`; `before_labels_change` is called while the dataset is locked.
    """
    if not dataset.cases or not (dataset.folder / "dataset.json").is_file():
        return
    if changes_of_dataset_json(dataset, home, reorient) == [] and not split_is_missing(dataset.folder, home):
        return
    if not os.access(home, os.W_OK):
        logger.warning("%s may only be read: its dataset.json or splits_final.json is not that of %s", home,
                       dataset.folder)  # fmt: skip
        return
    with dataset_lock(home):
        copy = copied_dataset_json(home)
        if copy and labels_digest(copy) != labels_digest(dataset.dataset_json):
            before_labels_change()
        follow_dataset_json(dataset, home, reorient)
        take_split(dataset.folder, home)


def _plans_reorient(home: Path) -> bool:
    """Whether any plans there turn images as they are read."""
    return any(REORIENTING.encode() in (home / f"{name}.json").read_bytes() for name in existing_plans(home))


def _wanted(dataset: RawDataset, home: Path, copy: dict[str, Any], reorient: bool) -> dict[str, Any]:
    kept = {KEY: copy[KEY]} if KEY in copy else {}
    if reorient or (reorients(copy) and _plans_reorient(home)):
        kept[READER] = REORIENTING
    return {k: v for k, v in dataset.dataset_json.items() if k != KEY} | kept


def split_is_missing(raw_folder: Path, home: Path) -> bool:
    """Whether the raw dataset comes with a split that nnUNet_preprocessed lacks, judged as by nnU-Net's planner.

    Raises:
        UserError: nnUNet_preprocessed has another split.
    """
    source, target = raw_folder / SPLIT, home / SPLIT
    if not source.is_file() or not target.is_file():
        return source.is_file()
    wanted, found = (_folds(file) for file in (source, target))
    if wanted != found[: len(wanted)]:  # it may have further folds
        raise UserError(f"{source} and {target}, which training reads, are different splits; delete the one that is "
                        f"wrong")  # fmt: skip
    return False


def take_split(raw_folder: Path, home: Path) -> None:
    """Copy the raw dataset's split where there is none yet."""
    if split_is_missing(raw_folder, home):
        copy_file(raw_folder / SPLIT, home / SPLIT)
        logger.info("%s: its split is taken from %s", home.name, raw_folder / SPLIT)


def warn_of_split(home: Path, ready: Collection[str]) -> None:
    """Warn of cases of the split without a usable volume: nnU-Net's own training stops at them."""
    if not (home / SPLIT).is_file():
        return
    listed = {case for train, held_out in _folds(home / SPLIT) for case in train | held_out}
    if missing := listed - set(ready):
        logger.warning("%s names %d cases that are not ready: %s; nnUNetv2_train cannot use a fold with them until "
                       "they are taken out of it", home / SPLIT, len(missing), named(missing))  # fmt: skip


def copy_label(case: RawCase, home: Path, ending: str) -> None:
    """Copy a case's label map to where nnU-Net's validation looks for it."""
    if case.label is not None:
        copy_file(Path(case.label), home / "gt_segmentations" / f"{case.name}{ending}")


def without_label_copy(dataset: RawDataset, home: Path) -> set[str]:
    """Cases whose label map has no copy."""
    if not dataset.labelled:
        return set()
    folder, ending = home / "gt_segmentations", dataset.dataset_json["file_ending"]
    copied = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return {name for name, case in dataset.cases.items() if case.label and name + ending not in copied}


def _check_labels(dataset: RawDataset) -> None:
    """nnU-Net's own check, before every case fails by it."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    content = dataset.dataset_json
    try:
        if dataset.labelled:
            LabelManager(content["labels"], content.get("regions_class_order"))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{dataset.folder / 'dataset.json'}: nnU-Net cannot work with its labels ({error}); mend "
                        f"them") from error  # fmt: skip


def _folds(file: Path) -> list[tuple[set[str], set[str]]]:
    return [(set(fold["train"]), set(fold["val"])) for fold in read_json(file, SplitsFile, "mend it, or delete it")]

"""The fixed test set: imagesTs with labels, a fold's validation cases, or a share of the labelled cases."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from nnssl.core.names import check_name
from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.errors import UserError
from nnssl.label_efficiency.subsets import draw_test_cases

LABELS_TS = "labelsTs"
_SHARE = 20.0  # percent, where there is no labelsTs

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class HeldOut:
    """Which cases are tested, and which are left for training.

    Args:
        source: where it comes from, for the reader.
        cases: names, sorted.
        training: names, sorted.
        raw: image files and label file of the cases that are not preprocessed with the training cases.
    """

    source: str
    cases: list[str]
    training: list[str]
    raw: dict[str, tuple[list[str], str]] = field(default_factory=dict)


def choose_test_set(
    choice: str | None,
    labelled: Sequence[str],
    splits: list[dict[str, list[str]]] | None,
    raw: Path | None,
    ending: str,
) -> HeldOut:
    """The test set.

    Args:
        choice: `labelsTs`, `fold_0` (or another number), a percentage, or None for labelsTs where it exists and else
            20 percent.
        labelled: names of the preprocessed cases with labels.
        splits: of the dataset's splits_final.json, None where there is none.
        raw: the dataset's folder in nnUNet_raw, None where that is not set.
        ending: of its files.

    Raises:
        UserError: there is no such test set, or it leaves nothing for training.
    """
    if choice is None:
        choice = LABELS_TS if raw is not None and _labels(raw, ending) else f"{_SHARE:g}"
    if choice == LABELS_TS:
        return _from_raw(labelled, raw, ending)
    if fold := re.fullmatch(r"fold_(\d+)", choice):
        return _from_split(int(fold[1]), splits, labelled)
    try:
        share = float(choice)
    except ValueError:
        raise UserError(f"-test takes labelsTs, fold_0 or a percentage such as 20, not {choice}") from None
    cases = draw_test_cases(labelled, share)
    return HeldOut(f"{share:g} % of the labelled cases", cases, sorted(set(labelled) - set(cases)))


def preprocess_test_cases(test: HeldOut, folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict
                          ) -> None:  # fmt: skip
    """Add the raw test cases to a folder of preprocessed cases, as nnU-Net preprocesses training cases.

    Raises:
        UserError: the plans name what nnU-Net must not call.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnssl.data.quiet import quietly

    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    refuse_untrusted_names(plans, settings.configuration)
    for case, (images, label) in test.raw.items():
        files = [f"{case}.pkl", f"{case}_seg.b2nd", f"{case}.b2nd"]
        if all((folder / name).is_file() for name in files):
            continue
        log.info(f"preprocessing the test case {case}")
        temporary = folder.parent / f".writing_{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with quietly():
                settings.preprocessor_class(verbose=False).run_case_save(
                    str(temporary / case), images, label, manager, settings, dataset_json
                )
            for name in files:
                os.replace(temporary / name, folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _labels(raw: Path, ending: str) -> dict[str, Path]:
    folder = raw / LABELS_TS
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ending)) if folder.is_dir() else []
    return {check_name(file.name[: -len(ending)], "case", folder): file for file in found}


def _from_raw(labelled: Sequence[str], raw: Path | None, ending: str) -> HeldOut:
    if raw is None:
        raise UserError(
            "the test set labelsTs lies in nnUNet_raw, which is not set; type: export nnUNet_raw=/path/to/it"
        )
    labels = _labels(raw, ending)
    images = raw / "imagesTs"
    if not labels or not images.is_dir():
        raise UserError(f"there are no test cases with labels in {raw} (imagesTs, {LABELS_TS}); take a share of the "
                        f"labelled cases with -test 20")  # fmt: skip
    if both := sorted(set(labels) & set(labelled)):
        raise UserError(f"{both[0]} is both a training and a test case of {raw.name}; rename or remove one of them")
    channels = "_[0-9][0-9][0-9][0-9]"
    files = {
        case: (sorted(map(str, images.glob(f"{escape(case)}{channels}{ending}"))), str(label))
        for case, label in labels.items()
    }
    if absent := [case for case, (found, _) in files.items() if not found]:
        raise UserError(f"{images} holds no image of {absent[0]}, which {LABELS_TS} has a label of; add it, or remove "
                        f"the label")  # fmt: skip
    return HeldOut(LABELS_TS, sorted(labels), sorted(labelled), files)


def _from_split(fold: int, splits: list[dict[str, list[str]]] | None, labelled: Sequence[str]) -> HeldOut:
    if splits is None:
        raise UserError(f"there is no splits_final.json whose fold {fold} could be the test set; take a share of the "
                        f"labelled cases with -test 20")  # fmt: skip
    if fold >= len(splits):
        raise UserError(f"splits_final.json has {len(splits)} folds, counted from 0, and no fold {fold}; take another "
                        f"with -test fold_0")  # fmt: skip
    chosen = splits[fold]
    cases, training = sorted(set(chosen["val"])), sorted(set(chosen["train"]))
    if unknown := sorted({*cases, *training} - set(labelled)):
        raise UserError(f"fold {fold} of splits_final.json names {unknown[0]}, which is not preprocessed with a label; "
                        f"preprocess it, or take another test set with -test")  # fmt: skip
    if set(cases) & set(training) or not cases or not training:
        raise UserError(f"fold {fold} of splits_final.json shares cases between train and val, or one of them is empty;"
                        f" take another test set with -test")  # fmt: skip
    return HeldOut(f"validation cases of fold {fold}", cases, training)

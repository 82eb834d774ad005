"""Nested, seeded subsets of the training cases, as folds of nnU-Net, and the fixed test set."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.names import check_name
from nnssl.data.preprocessing import PreprocessingJob, prepare_case
from nnssl.data.storage import masked_cases
from nnssl.data.trusted import refuse_untrusted_names

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Amount:
    """Number of training cases that keep their labels, and the `percent` of all that the user asked for."""

    cases: int
    percent: float


@dataclass(frozen=True)
class Fold:
    """One training set: the first `cases` of the training cases in the order of `seed`."""

    number: int
    cases: int
    seed: int
    train: tuple[str, ...]


def amounts_of(
    total: int, fractions: Sequence[float] | None = None, cases: Sequence[int] | None = None
) -> list[Amount]:
    """Amounts in ascending order; fractions that give the same number of cases are merged, with a warning.

    Args:
        total: number of training cases.
        fractions: in percent, in (0, 100]; rounded up to whole cases (methods.md 3.5).
        cases: in [1, total], instead of fractions.

    Raises:
        UserError: a number is out of range, or none is given.
    """
    if cases:
        if wrong := [n for n in cases if not 1 <= n <= total]:
            raise UserError(f"-cases takes numbers from 1 to {total}, the number of training cases, not {wrong[0]}")
        return [Amount(n, 100 * n / total) for n in sorted(set(cases))]
    if not fractions:
        raise UserError("no amount of labels is given; type for example -fractions 5 10 20 50 100")
    if odd := [f for f in fractions if not 0 < f <= 100]:
        raise UserError(f"-fractions takes percentages above 0 and up to 100, not {odd[0]:g}")
    found: dict[int, float] = {}
    for fraction in sorted(set(fractions)):
        count = max(1, math.ceil(total * fraction / 100 - 1e-9))  # 0.07 * 100 is 7.000000000000001
        if count in found:
            log.warning(f"{fraction:g} % of {total} training cases are {count}, as many as {found[count]:g} %; "
                        f"{fraction:g} % is skipped")  # fmt: skip
        found.setdefault(count, fraction)
    return [Amount(count, fraction) for count, fraction in found.items()]


def subset(training: Sequence[str], cases: int, seed: int) -> tuple[str, ...]:
    """The first `cases` of the training cases in the seed's order; a larger subset contains all smaller ones."""
    names = sorted(training)
    order = np.random.default_rng(seed).permutation(len(names))
    return tuple(names[i] for i in order[:cases])


def extend_folds(
    known: Sequence[Fold], training: Sequence[str], amounts: Sequence[Amount], seeds: int, order: Sequence[str] = ()
) -> list[Fold]:
    """Add the folds that are missing for the amounts and seeds; known folds keep their numbers.

    Args:
        known: folds of earlier calls.
        training: names of the training cases.
        amounts: numbers of cases.
        seeds: number of orders of the training cases.
        order: of seed 0, where the split has one of its own.
    """
    folds = list(known)
    present = {(f.cases, f.seed) for f in folds}
    for seed in range(seeds):
        for amount in amounts:
            if (amount.cases, seed) not in present:
                own = seed == 0 and bool(order)
                train = tuple(order[: amount.cases]) if own else subset(training, amount.cases, seed)
                folds.append(Fold(len(folds), amount.cases, seed, train))
    return folds


def draw_test_cases(cases: Sequence[str], percent: float) -> list[str]:
    """Choose a share of the cases, at least one and always the same ones; sorted.

    Raises:
        UserError: no case would be left for training.
    """
    names = sorted(cases)
    count = max(1, round(len(names) * percent / 100)) if 0 < percent < 100 else len(names)
    if count >= len(names):
        raise UserError(f"-test {percent:g} of {len(names)} labelled cases leaves none for training; take a smaller "
                        f"percentage")  # fmt: skip
    order = np.random.default_rng(_TEST_SEED).permutation(len(names))
    return sorted(names[i] for i in order[:count])


_TEST_SEED = 20_000  # not one of the training's seeds


LABELS_TS = "labelsTs"
_SHARE = 20.0  # percent, if there is no labelsTs
PAPER = "70/10/20"  # PiMPiC's split (methods.md 3.5)
_PAPER_SEED = 100


@dataclass(frozen=True)
class HeldOut:
    """The test cases, and the cases left for training.

    Args:
        source: origin of the test set, for messages.
        cases: names of the test cases, sorted.
        training: names of the others, sorted.
        raw: image files and label file of test cases that are not preprocessed with the training cases.
        order: of the training cases for seed 0; empty where that is drawn.
        validation: cases of the split that are for validation while training; empty where it has none.
    """

    source: str
    cases: list[str]
    training: list[str]
    raw: dict[str, tuple[list[str], str]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


def choose_test_set(
    choice: str | None,
    labelled: Sequence[str],
    splits: list[dict[str, list[str]]] | None,
    raw: Path | None,
    ending: str,
) -> HeldOut:
    """Choose the test set.

    Args:
        choice: `labelsTs`, `fold_0` (or another number), a percentage, `70/10/20` (see `paper_split`), or None for
            labelsTs if it exists, else 20 percent.
        labelled: names of the preprocessed cases with labels.
        splits: content of the dataset's splits_final.json, or None.
        raw: the dataset's folder in nnUNet_raw, None if that is not set.
        ending: of its files.

    Raises:
        UserError: there is no such test set, or it leaves nothing for training.
    """
    if choice is None:
        choice = LABELS_TS if raw is not None and _labels(raw, ending) else f"{_SHARE:g}"
    if choice == LABELS_TS:
        return _from_raw(labelled, raw, ending)
    if choice == PAPER:
        return paper_split(labelled)
    if fold := re.fullmatch(r"fold_(\d+)", choice):
        return _from_split(int(fold[1]), splits, labelled)
    try:
        share = float(choice)
    except ValueError:
        raise UserError(f"-test takes labelsTs, fold_0, a percentage such as 20 or {PAPER}, not {choice}") from None
    cases = draw_test_cases(labelled, share)
    return HeldOut(f"{share:g} % of the labelled cases", cases, sorted(set(labelled) - set(cases)))


def paper_split(cases: Sequence[str]) -> HeldOut:
    """Split as PiMPiC: 70 % training, 10 % validation, the rest test, of the sorted cases shuffled by seed 100.

    Both shares are rounded down. The first cases of the training's order are its subsets.

    Raises:
        UserError: there are fewer than 10 cases, so that none would be for validation.
    """
    names = sorted(cases)
    if len(names) < 10:
        raise UserError(f"-test {PAPER} needs 10 labelled cases or more, and there are {len(names)}; take a percentage")
    random.Random(_PAPER_SEED).shuffle(names)
    end = int(len(names) * 0.7)
    validation, test = names[end : end + int(len(names) * 0.1)], names[end + int(len(names) * 0.1) :]
    return HeldOut(f"20 % of the labelled cases by the split {PAPER}", sorted(test), sorted(names[:end]),
                   order=tuple(names[:end]), validation=tuple(sorted(validation)))  # fmt: skip


def preprocess_test_cases(test: HeldOut, folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict
                          ) -> None:  # fmt: skip
    """Preprocess the raw test cases into a folder of preprocessed cases, as nnU-Net does with training cases.

    They get body masks where the training cases have them.

    Raises:
        UserError: the plans name a class that is not trusted.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnssl.data.pool import quietly

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
    if masked := masked_cases(folder):
        _add_bodies(
            sorted(test.raw.keys() - masked), PreprocessingJob(plans, configuration, dataset_json, folder, None)
        )


def _add_bodies(cases: Sequence[str], job: PreprocessingJob) -> None:
    for case in cases:
        if (reason := prepare_case(case, job).reason) is not None:
            log.warning(f"the test case {case} has no body mask: {reason}")


def _labels(raw: Path, ending: str) -> dict[str, Path]:
    folder = raw / LABELS_TS
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ending)) if folder.is_dir() else []
    return {check_name(file.name[: -len(ending)], "case", folder): file for file in found}


def _from_raw(labelled: Sequence[str], raw: Path | None, ending: str) -> HeldOut:
    if raw is None:
        raise UserError("the test set labelsTs is in nnUNet_raw, which is not set; type: export nnUNet_raw=/path/to/it")
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
        raise UserError(f"{images} has no image of {absent[0]}, but {LABELS_TS} has its label; add the image, or "
                        f"remove the label")  # fmt: skip
    return HeldOut(LABELS_TS, sorted(labels), sorted(labelled), files)


def _from_split(fold: int, splits: list[dict[str, list[str]]] | None, labelled: Sequence[str]) -> HeldOut:
    if splits is None:
        raise UserError(f"there is no splits_final.json with a fold {fold} for the test set; take a share of the "
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

"""Training and test cases of each fold: those of `splits_final.json`, else stratified ones of the target's own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.classification.labels import FILE, Target
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.schemas import SplitsFile

STOCK = "splits_final.json"
_BINS = 5  # of numbers, to have small and large ones in every fold

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Fold:
    """Cases with a value, by name."""

    number: int
    train: tuple[str, ...]
    test: tuple[str, ...]


def folds_of(target: Target, home: Path, count: int, seed: int, given: Path | None = None) -> tuple[list[Fold], Path]:
    """The folds of a target, and the file that they are in.

    `splits_final.json` is used where it exists, and never changed. Otherwise `splits_TARGET.json` is, which is made
    where it is missing: classes have the same shares in every fold, as far as groups, which stay together, allow it.

    Args:
        target: with its cases.
        home: folder of the dataset in nnUNet_preprocessed.
        count: number of folds to make.
        seed: of the shuffling.
        given: file to take in place of both.

    Raises:
        UserError: a class has fewer cases, or groups, than folds; a fold has no case to learn from or to test; or a
            file does not fit the cases.
    """
    stock, own = home / STOCK, home / f"splits_{target.name}.json"
    if own.name.casefold() == STOCK:
        raise UserError(f"folds of a target called {target.name} would be kept in {STOCK}, which is nnU-Net's; give "
                        f"the column of {FILE} another name")  # fmt: skip
    if given is not None:
        file, fix = given, "mend it, or leave out -splits"
    elif stock.is_file():
        file, fix = stock, "mend it, or move it away: a split of the target's own is made then"
    else:
        file, fix = own, "delete it: it is made anew"
        if not own.is_file():
            write_json(own, _make(target, count, seed))
            log.info(f"{own}: {count} folds")
    content = read_json(file, SplitsFile, fix)
    if not content:
        raise UserError(f"{file} has no fold; {fix}")
    if len(content) != count:
        log.info(f"{len(content)} folds, as {file} has")
    folds = []
    for number, part in enumerate(content):
        train, test = (tuple(sorted(set(target.cases) & set(part[key]))) for key in ("train", "val"))
        folds.append(Fold(number, train, test))
    _check(folds, target, file, fix)
    return folds, file


def split_off(target: Target, cases: Sequence[str], share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training cases without, and with, those that tell when to stop: about `share` of them, stratified as folds are.

    Raises:
        UserError: there are too few cases, or groups, of a class.
    """
    part = Target(target.name, tuple(cases), target.of(cases), target.classes, tuple(target.groups_of(cases)))
    for count in range(max(2, round(1 / share)), 1, -1):
        if (made := splits(part, count, seed)) is not None:
            train, held_out = made[0]
            return tuple(part.cases[i] for i in train), tuple(part.cases[i] for i in held_out)
    raise UserError(f"a class of {target.name} has only one case, or group, among the {len(cases)} training cases of a "
                    f"fold, and none can be held out to tell when to stop; add cases to {FILE}, or leave out "
                    f"--finetune")  # fmt: skip


def strata(values: NDArray[np.float64], is_classes: bool) -> NDArray[np.int64]:
    """(N,) what to stratify by: the classes, or up to five bins of equal numbers."""
    if is_classes:
        return values.astype(np.int64)
    edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _make(target: Target, count: int, seed: int) -> list[dict[str, list[str]]]:
    if len(target.classes) > max(2, len(target.cases) / 2):
        raise UserError(f"{target.name} has {len(target.classes)} different names in {len(target.cases)} cases; join "
                        f"them to fewer classes, or write numbers for a regression (a point before decimals; dates as "
                        f"days or years)")  # fmt: skip
    for number, name in enumerate(target.classes):
        members = np.flatnonzero(target.values == number)
        groups = len({target.groups[i] for i in members})
        if groups < count:
            kind = ("group" if groups < len(members) else "case") + "s" * (groups > 1)
            raise UserError(f"the class {name} of {target.name} has {groups} {kind} and there are {count} folds, so "
                            f"that one would have none; add cases, or give -folds {max(groups, 2)}"
                            + (" after you have joined the class to another" if groups < 2 else ""))  # fmt: skip
    if len(set(target.groups)) < count:
        raise UserError(f"{target.name} has {len(set(target.groups))} cases or groups and there are {count} folds; add "
                        f"cases, or give fewer -folds")  # fmt: skip
    made = splits(target, count, seed)
    if made is None:
        raise UserError(f"the groups of {target.name} cannot be spread over {count} folds so that each has a test "
                        f"case and training cases of every class; give fewer -folds")  # fmt: skip
    return [{"train": [target.cases[i] for i in train], "val": [target.cases[i] for i in test]} for train, test in made]


def splits(target: Target, count: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    """Positions of training and test cases of each fold, stratified where there are enough cases, groups together.

    Returns:
        None where a fold would have no test case, or no training case of a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    wanted, groups = strata(target.values, bool(target.classes)), len(set(target.groups))
    if min(Counter(wanted.tolist()).values()) < count:
        if target.classes:
            return None
        wanted = np.zeros_like(wanted)
    if groups < count:
        return None
    grouped = groups < len(target.groups)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    parts = splitter.split(wanted, wanted, target.groups if grouped else None)
    made = [(np.asarray(train), np.asarray(test)) for train, test in parts]
    whole = len(set(wanted.tolist()))
    return made if all(len(test) and len(set(wanted[train].tolist())) == whole for train, test in made) else None


def _check(folds: Sequence[Fold], target: Target, file: Path, fix: str) -> None:
    """Refuse folds that cannot be learned from or tested, and warn of what they leave out or take apart."""
    for fold in folds:
        if not fold.train or not fold.test:
            kind = "training" if not fold.train else "test"
            raise UserError(f"fold {fold.number} of {file} has no {kind} case with a {target.name}; {fix}")
        if both := set(fold.train) & set(fold.test):
            raise UserError(f"fold {fold.number} of {file} trains on the test case {min(both)}; {fix}")
        if target.classes and (gone := set(range(len(target.classes))) - set(target.of(fold.train).astype(int))):
            raise UserError(f"fold {fold.number} of {file} has no training case of the class "
                            f"{target.classes[min(gone)]}; {fix}")  # fmt: skip
        if apart := set(target.groups_of(fold.train)) & set(target.groups_of(fold.test)):
            log.warning(f"fold {fold.number} of {file} tests the group {min(apart).strip()} that it trains on: its "
                        f"scores are too good; {fix}")  # fmt: skip
    tested = Counter(case for fold in folds for case in fold.test)
    if twice := [case for case, times in tested.items() if times > 1]:
        raise UserError(f"{file} tests the case {twice[0]} in two folds; {fix}")
    if missing := [case for case in target.cases if case not in tested]:
        log.warning(f"{len(missing)} of {len(target.cases)} cases with a {target.name} are tested in no fold of "
                    f"{file}, {missing[0]} for one; {fix}")  # fmt: skip

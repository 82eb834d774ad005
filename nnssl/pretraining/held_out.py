"""Which cases a run trains on, and which it holds out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.schemas import SplitsFile
from nnssl.data.folders import dataset_argument
from nnssl.data.loader import Cases
from nnssl.data.volumes import VolumeFolder

HELD_OUT = 0.05  # fraction of the cases that give the validation loss


def hold_out(datasets: Sequence[VolumeFolder], fold: str, seed: int) -> tuple[Cases, Cases]:
    """Training and held-out cases.

    Fold "all": 5 % of the cases (at least one, but none of a single case), chosen by a hash of their names, so that
    volumes that are added later do not shuffle the others. A number: the fold of every dataset's `splits_final.json`;
    a dataset without that file (it has no labels) gives all its cases to the training, and so do cases without label.

    Raises:
        UserError: no volumes; the fold is not a number, or no dataset has it.
    """
    names = [d.cases() for d in datasets]
    for dataset, cases in zip(datasets, names, strict=True):
        if not cases:
            raise UserError(f"{dataset.images} holds no preprocessed volumes with body masks; run "
                            f"nnssl_plan_and_preprocess -d {dataset_argument(dataset.name)}")  # fmt: skip
    if fold == "all":
        chosen = _held_out_by_hash(datasets, names, seed)
    else:
        chosen = [
            _held_out_by_split(d.images.parent / "splits_final.json", fold) if d.in_splits else None for d in datasets
        ]
        if all(c is None for c in chosen):
            raise UserError(f"-f {fold} needs {datasets[0].images.parent / 'splits_final.json'}, which nnUNetv2_train "
                            f"writes; use -f all to pretrain on all cases")  # fmt: skip
    train = [[c for c in cases if held is None or c in held[0]] for cases, held in zip(names, chosen, strict=True)]
    val = [[c for c in cases if held is not None and c in held[1]] for cases, held in zip(names, chosen, strict=True)]
    if not any(train):
        raise UserError(f"fold {fold} leaves no preprocessed case for the training; run nnssl_plan_and_preprocess for "
                        f"all cases of splits_final.json")  # fmt: skip
    return Cases.of(datasets, train), Cases.of(datasets, val)


Split = tuple[set[str], set[str]]  # training and held-out cases


def _held_out_by_hash(datasets: Sequence[VolumeFolder], names: list[list[str]], seed: int) -> list[Split | None]:
    keyed = sorted(
        (hashlib.blake2b(f"{seed}/{d.name}/{c}".encode(), digest_size=8).digest(), i, c)
        for i, (d, cases) in enumerate(zip(datasets, names, strict=True))
        for c in cases
    )
    count = min(len(keyed) - 1, max(1, round(HELD_OUT * len(keyed))))
    held = {(i, c) for _, i, c in keyed[:count]}
    return [
        ({c for c in cases if (i, c) not in held}, {c for c in cases if (i, c) in held})
        for i, cases in enumerate(names)
    ]


def _held_out_by_split(file: Path, fold: str) -> Split | None:
    if not file.is_file():
        return None
    splits = read_json(file, SplitsFile, "delete it, nnUNetv2_train writes it anew")
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise UserError(f"there is no fold {fold!r} in {file}; use -f all, or a number below {len(splits)}")
    return set(splits[int(fold)]["train"]), set(splits[int(fold)]["val"])

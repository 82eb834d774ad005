"""What `nnssl_classify` is asked: a target of a dataset with its folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnssl.classification.labels import FILE, Target, Task, read_target
from nnssl.classification.splits import Fold, folds_of
from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.raw import LABELLED, read_raw_dataset

FEWEST_FOLDS = 2


@dataclass(frozen=True)
class Question:
    """A target of a dataset with its folds.

    Args:
        dataset: its name.
        images: its folder of images.
        target: with the cases that have a value.
        folds: all of them.
        splits: the file with the folds.
        results: folder of the dataset in nnUNet_results.
    """

    dataset: str
    images: Path
    target: Target
    folds: list[Fold]
    splits: Path
    results: Path


def ask(
    dataset: int | str, target: str | None, task: Task | None, folds: int, seed: int, splits: str | Path | None = None
) -> Question:
    """Read the target and its folds, of the file `splits` if one is given.

    Raises:
        UserError: as `read_target` and `folds_of`.
    """
    raw, preprocessed, results = require_folders("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    if folds < FEWEST_FOLDS:
        raise UserError(f"-folds {folds} leaves nothing to learn from or to test; give {FEWEST_FOLDS} or more")
    name = dataset_name(dataset)
    found = read_raw_dataset(raw, name)
    if "dataset" in found.dataset_json:
        raise UserError(f"{found.folder / 'dataset.json'} lists its files itself, which nnssl_classify does not read; "
                        f"put the images into {found.folder / LABELLED}")  # fmt: skip
    cases = found.cases | found.without_label
    wanted = read_target(found.folder / FILE, cases.keys(), target, task)
    made, file = folds_of(wanted, preprocessed / name, folds, seed, None if splits is None else Path(splits))
    return Question(name, found.folder / LABELLED, wanted, made, file, results / name)

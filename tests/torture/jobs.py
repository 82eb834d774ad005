"""Commands that are killed, and what has to be there when the same line has been run to its end."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnssl.checkpoints.files import load_checkpoint
from nnssl.data.report import report_file
from nnssl.pretraining.metrics import read_rows
from tests.phantoms import write_ct_dataset
from tests.runs import same_content

SHAPE = (32, 60, 60)
PLANS = "nnsslPlans_tiny"
RUN = f"nnUNet_results/Dataset500_Phantom/nnssl_vox2vec__{PLANS}__3d_fullres/fold_all"
_PRETRAIN = (f"nnssl_pretrain -d 500 -m vox2vec -p {PLANS} -device cpu -np 1 --c -o num_epochs=4 steps_per_epoch=12 "
             f"val_steps_per_epoch=1 save_every_epochs=1 patch_size=16,16,16 voxels_per_pair=64")  # fmt: skip
_ROWS = ("epoch", "step", "loss", "val_loss", "gradient_norm", "effective_rank", "samples")


@dataclass(frozen=True)
class Job:
    """A line that is killed and typed again.

    Args:
        name: for the table.
        line: the command, in a folder that holds nnU-Net's three.
        after: the job whose result it starts from; None for raw images alone.
    """

    name: str
    line: str
    after: str | None


JOBS = (
    Job("preprocess", f"nnssl_plan_and_preprocess -d 500 -p {PLANS} -np 2", None),
    Job("pretrain", _PRETRAIN, "preprocess"),
    Job("transfer", "nnssl_transfer -s 500 -t 17 -np 2", "pretrain"),
    Job("embed", f"nnssl_embed -m {RUN} -i 500 -o vectors -format csv -device cpu", "pretrain"),
    Job("embed dense", f"nnssl_embed -m {RUN} -i 17 -o maps -what dense -components 3 -device cpu", "pretrain"),
)


def write_raw(folder: Path) -> None:
    """Two small datasets: CTs without labels, and some with."""
    for name in ("raw", "preprocessed", "results"):
        (folder / f"nnUNet_{name}").mkdir(parents=True)
    write_ct_dataset(folder / "nnUNet_raw", 500, "Phantom", 7, shape=SHAPE)
    write_ct_dataset(folder / "nnUNet_raw", 17, "Organs", 5, shape=SHAPE, labelled=True)


def copy(state: Path, target: Path) -> None:
    """A folder of its own to be killed in."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(state, target, symlinks=True)


def names(folder: Path) -> set[str]:
    """Everything in it, hidden files and empty folders too."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


def differences(wanted: Path, found: Path) -> Iterator[str]:
    """What a killed and continued job lost, changed or left behind, by the uninterrupted one's folder."""
    expected, there = names(wanted), names(found)
    yield from (f"{name} is missing" for name in sorted(expected - there))
    yield from (f"{name} was left behind" for name in sorted(there - expected))
    for name in sorted(expected & there):
        if (wanted / name).is_file() and not _same(wanted / name, found / name):
            yield f"{name} differs"
    for dataset in (found / "nnUNet_preprocessed").glob("Dataset*"):
        for plans in dataset.glob("nnsslPlans*.json"):
            report = report_file(dataset, plans.stem)
            if report.is_file() and (bad := json.loads(report.read_text())["left_out"]):
                yield f"healthy volumes are called bad: {bad}"


def _same(a: Path, b: Path) -> bool:
    """Whether two files hold the same; what says only when, where or how fast is not looked at."""
    if a.suffix == ".b2nd":
        first, second = (blosc2.open(str(file))[:] for file in (a, b))  # type: ignore[index]
        return bool(first.dtype == second.dtype and np.array_equal(first, second))
    if a.suffix == ".pkl":
        return _equal(*(pickle.loads(file.read_bytes()) for file in (a, b)))
    if a.suffix == ".npz":
        return _equal(*(dict(np.load(file)) for file in (a, b)))
    if a.name.startswith("checkpoint_"):
        states = [load_checkpoint(file) for file in (a, b)]
        return all(same_content(states[0][key], states[1][key]) for key in ("method_state", "optimiser_state", "step"))
    if a.name == "metrics.jsonl":
        return _equal(*([[row[key] for key in _ROWS] for row in read_rows(file)] for file in (a, b)))
    if a.name in ("dataset_fingerprint.json", f"{PLANS}.json", "vectors.csv") or a.name.endswith(".nii.gz"):
        return a.read_bytes() == b.read_bytes()
    return b.stat().st_size > 0 or a.stat().st_size == 0


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)

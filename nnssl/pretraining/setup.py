"""Everything that a run is made of, resolved and checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.data.alignment import Aligner, RelativePosition
from nnssl.data.folders import dataset_argument
from nnssl.data.loader import Cases
from nnssl.data.volumes import VolumeFolder
from nnssl.errors import UserError
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.registry import get_method
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.checkpoint import FINAL, LATEST
from nnssl.probing.data import ProbeData

HELD_OUT = 0.05  # fraction of the cases that give the validation loss


@dataclass(frozen=True)
class Setup:
    """A resolved run; plain and picklable, so that it can be handed to other processes.

    Args:
        method: name of the method.
        config: its hyper-parameters, with batch and patch size resolved.
        plans, dataset_json, fingerprint: nnU-Net's files of the first dataset.
        configuration: of the plans.
        fold: "all" or a number.
        train, val: the volumes; `val` may be empty.
        folder: the run's output folder.
        resume: checkpoint to continue from.
        pretrained: checkpoint whose weights to start from.
        orientation: the first dataset's commonest one, such as LPS; None where it is unknown.
        aligner: what finds a point of a volume in another one, for methods that pair volumes.
        probe: the labelled dataset that the features are probed on while the run goes on; None for no probe.
    """

    method: str
    config: MethodConfig
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    fingerprint: dict[str, Any]
    configuration: str
    fold: str
    train: Cases
    val: Cases
    folder: Path
    resume: Path | None = None
    pretrained: Path | None = None
    orientation: str | None = None
    aligner: Aligner = field(default_factory=RelativePosition)
    probe: ProbeData | None = None

    def build_method(self) -> Method:
        """The method with a freshly initialised backbone."""
        method = get_method(self.method)
        backbone = build_backbone(self.plans, self.configuration, method.levels)
        method.check(self.config, backbone)
        return method(backbone, self.config)


def run_folder(results: Path, dataset: str, method: str, plans_name: str, configuration: str, fold: str) -> Path:
    """Where a run's files lie: beside nnU-Net's own models of the dataset."""
    return results / dataset / f"nnssl_{method}__{plans_name}__{configuration}" / f"fold_{fold}"


def resolve_sizes(config: MethodConfig, plans: dict[str, Any], configuration: str, world_size: int) -> MethodConfig:
    """The hyper-parameters with the plans' batch and patch size where none is given.

    Raises:
        UserError: the plans lack the configuration or it is 2D; the batch does not divide among the processes.
    """
    resolved = resolve_configuration(plans, configuration)
    z, y, x = (int(p) for p in (config.patch_size or resolved["patch_size"]))
    batch_size = config.batch_size or int(resolved["batch_size"])
    if batch_size % world_size:
        raise UserError(f"a batch of {batch_size} cannot be divided among {world_size} processes; set "
                        f"-o batch_size={-(-batch_size // world_size) * world_size}")  # fmt: skip
    return replace(config, patch_size=(z, y, x), batch_size=batch_size)


def hold_out(datasets: Sequence[VolumeFolder], fold: str, seed: int) -> tuple[Cases, Cases]:
    """Training and held-out cases.

    Fold "all": 5 % of the cases (at least one, none if there is but one), chosen by a hash of their names, so that
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
    try:
        splits = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); delete it, nnUNetv2_train writes it anew") from error
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise UserError(f"there is no fold {fold!r} in {file}; use -f all, or a number below {len(splits)}")
    return set(splits[int(fold)]["train"]), set(splits[int(fold)]["val"])


def check_output(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """Checkpoint to continue from, or None for a new run.

    Raises:
        UserError: the folder holds a run that the request would overwrite.
    """
    final, latest = folder / FINAL, folder / LATEST
    if resume and overwrite:
        raise UserError("--c continues a run and --overwrite starts anew; give one of them")
    if resume:
        return final if final.is_file() else latest if latest.is_file() else None
    if overwrite:
        return None
    if final.is_file():
        raise UserError(f"{folder} holds a finished run; start anew with --overwrite, or use its {FINAL}")
    if latest.is_file():
        raise UserError(f"{folder} holds an interrupted run; continue it with --c, or start anew with --overwrite")
    return None


def check_same_run(setup: Setup, checkpoint: dict[str, Any]) -> None:
    """Refuse to continue a run with other plans, volumes, pairs or probe than it began with.

    Raises:
        UserError: naming what differs.
    """
    if checkpoint["plans"] != setup.plans:
        raise UserError(f"the plans {setup.plans['plans_name']} have changed since {setup.resume} was written; start "
                        f"anew with --overwrite")  # fmt: skip
    if checkpoint["train_cases"] != case_labels(setup.train) or checkpoint["val_cases"] != case_labels(setup.val):
        raise UserError(f"the preprocessed volumes are not those that {setup.resume} was trained on; restore them, or "
                        f"start anew with --overwrite")  # fmt: skip
    before = checkpoint.get("aligner", RelativePosition().identity)
    if get_method(setup.method).pairs_volumes and before != setup.aligner.identity:
        asked = before if before == RelativePosition().identity else "CHECKPOINT"
        raise UserError(f"this run began with volumes paired by {before} and would go on with "
                        f"{setup.aligner.identity}; continue it with the same -alignment {asked}, or start anew with "
                        f"--overwrite")  # fmt: skip
    _check_same_probe(setup, checkpoint)


def _check_same_probe(setup: Setup, checkpoint: dict[str, Any]) -> None:
    state = checkpoint.get("probe_state")
    before, now = state and state["identity"], setup.probe and setup.probe.identity
    if before == now:
        return
    if before and now and before["dataset"] == now["dataset"]:
        raise UserError(f"the cases, the labels or -probe_every of the probe on {now['dataset']} are not those that "
                        f"this run began with; restore them, or start anew with --overwrite")  # fmt: skip
    texts = [f"with -probe {probe['dataset']}" if probe else "without -probe" for probe in (before, now)]
    raise UserError(f"this run began {texts[0]} and would go on {texts[1]}; continue it {texts[0]}, or start anew with "
                    f"--overwrite")  # fmt: skip


def case_labels(cases: Cases) -> list[str]:
    """Names of the volumes with their datasets."""
    return [cases.label(i) for i in range(len(cases))]

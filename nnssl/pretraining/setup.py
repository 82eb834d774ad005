"""Everything that a run is made of, resolved and checked before anything is written."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.checkpoints.files import BEST, FINAL, LATEST, check_entries, load_checkpoint, load_content
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import RunFile
from nnssl.core.schemas import SplitsFile
from nnssl.core.system import unreadable
from nnssl.data.folders import dataset_argument
from nnssl.data.inventory import named
from nnssl.data.loader import Aligner, Cases, RelativePosition
from nnssl.data.unused import read_withdrawn
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.registry import get_method
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.run_lock import Claim

CONFIG = "config.json"  # of a run, written before it begins
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
        claim: the right to write to `folder`; None where nobody else could.
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
    claim: Claim | None = None

    def build_method(self) -> Method:
        """The method with a freshly initialised backbone."""
        method = get_method(self.method)
        backbone = build_backbone(self.plans, self.configuration, method.levels)
        method.check(self.config, backbone)
        return method(backbone, self.config)

    def check_claim(self) -> None:
        """Raise UserError where another run writes to the folder by now."""
        if self.claim is not None:
            self.claim.check()


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
    splits = read_json(file, SplitsFile, "delete it, nnUNetv2_train writes it anew")
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise UserError(f"there is no fold {fold!r} in {file}; use -f all, or a number below {len(splits)}")
    return set(splits[int(fold)]["train"]), set(splits[int(fold)]["val"])


def check_output(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """Checkpoint to continue from, or None for a new run.

    Raises:
        UserError: the folder holds a run that the request would overwrite, or with `overwrite` something else.
    """
    final, latest = folder / FINAL, folder / LATEST
    if resume and overwrite:
        raise UserError("--c continues a run and --overwrite starts anew; give one of them")
    if resume:
        return final if final.is_file() else latest if latest.is_file() else None
    if overwrite:
        refuse_other_folder(folder)
        return None
    if final.is_file():
        raise UserError(f"{folder} holds a finished run; start anew with --overwrite, or use its {FINAL}")
    if latest.is_file():
        raise UserError(f"{folder} holds an interrupted run; continue it with --c, or start anew with --overwrite")
    return None


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError unless `--overwrite` may remove a folder: that of a run, an empty one, or none.

    What lies behind a link is never removed.
    """
    fix = "move it away, or remove it yourself"
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and --overwrite removes nothing that lies elsewhere; {fix}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; {fix}")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in (FINAL, LATEST)):
        read_json(folder / CONFIG, RunFile, f"--overwrite removes nothing but runs of nnssl_pretrain; {fix}")


def load_resumed(path: Path) -> dict[str, Any]:
    """The checkpoint that a run goes on from; a damaged one is never passed over in silence.

    Raises:
        UserError: it is damaged; says which other one of the run is whole, and what to type to go on from that.
        OSError: it cannot be read, which says nothing of its content.
    """
    try:
        content = load_content(path)
    except UserError as error:
        if (refused := unreadable(path)) is not None:
            raise refused from error
        others = [path.with_name(name) for name in (LATEST, BEST) if path.name != name]
        good = next((other for other in others if _step(other) is not None), None)
        if good is None:
            raise UserError(f"{path} is damaged, and the run has no other checkpoint that is whole; restore the file, "
                            f"or start anew with --overwrite") from error  # fmt: skip
        aside = f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.damaged')}"
        if good.name != LATEST:
            aside += f" && cp {shlex.quote(str(good))} {shlex.quote(str(path.with_name(LATEST)))}"
        raise UserError(f"{path} is damaged, but {good.name} beside it is whole (step {_step(good)}); to go on from "
                        f"that one type: {aside}; then continue with --c") from error  # fmt: skip
    return check_entries(content, path, to_continue=True)


def _step(path: Path) -> int | None:
    """Finished steps of a checkpoint that is whole."""
    try:
        return int(load_checkpoint(path)["step"])
    except (UserError, OSError, KeyError):
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
        raise UserError(_other_volumes(setup, [*checkpoint["train_cases"], *checkpoint["val_cases"]]))
    before = checkpoint.get("aligner", RelativePosition().identity)
    if get_method(setup.method).pairs_volumes and before != setup.aligner.identity:
        asked = before if before == RelativePosition().identity else "CHECKPOINT"
        raise UserError(f"this run began with volumes paired by {before} and would go on with "
                        f"{setup.aligner.identity}; continue it with the same -alignment {asked}, or start anew with "
                        f"--overwrite")  # fmt: skip
    _check_same_probe(setup, checkpoint)


def _other_volumes(setup: Setup, before: Sequence[str]) -> str:
    """Why a run on the volumes `before` cannot go on, and what to do."""
    folders = {*setup.train.folders, *setup.val.folders}
    withdrawn = {f"{f.name}/{case}" for f in folders for case in read_withdrawn(f.images.parent)} & set(before)
    if not withdrawn:
        return (f"the preprocessed volumes are not those that {setup.resume} was trained on; restore them, or start "
                f"anew with --overwrite")  # fmt: skip
    return (f"{named(withdrawn)} are gone from nnUNet_raw and are not used any more, so that this run, which began "
            f"with them, cannot go on; start anew with --overwrite, or from its weights: copy {setup.resume} "
            f"elsewhere and add --overwrite -pretrained COPY")  # fmt: skip


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

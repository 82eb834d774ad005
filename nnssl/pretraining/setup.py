"""A resolved run: method, sizes, plans, training and held-out volumes, folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.checkpoints.files import FINAL
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.schemas import SplitsFile
from nnssl.data.folders import dataset_argument
from nnssl.data.guard import Images, names_of_channels
from nnssl.data.loader import Aligner, Cases, RelativePosition
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.registry import get_method
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.folder import Claim, Stored

if TYPE_CHECKING:
    from nnssl.pretraining.probe_data import ProbeData

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
        resume: checkpoint to go on from.
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
    resume: Stored | None = None
    pretrained: Stored | None = None
    orientation: str | None = None
    aligner: Aligner = field(default_factory=RelativePosition)
    probe: ProbeData | None = None
    claim: Claim | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds the whole run already."""
        return self.resume is not None and self.resume.path == self.folder / FINAL

    def build_method(self) -> Method:
        """The method with a freshly initialised backbone."""
        method = get_method(self.method)
        backbone = build_backbone(self.plans, self.configuration, method.levels)
        method.check(self.config, backbone)
        return method(backbone, self.config)

    @property
    def images(self) -> Images:
        """Channels and commonest orientation of the volumes, to compare with those of another pretraining."""
        name = self.train.folders[0].name
        oriented = {f"most volumes of {name}": self.orientation}
        return Images(name, names_of_channels(self.dataset_json), orientations=oriented)

    def check_claim(self) -> None:
        """Raise UserError where another run has taken the folder."""
        if self.claim is not None:
            self.claim.check()


def resolve_sizes(config: MethodConfig, plans: dict[str, Any], configuration: str, world_size: int) -> MethodConfig:
    """Fill in the plans' batch and patch size where none is given.

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


def case_labels(cases: Cases) -> list[str]:
    """Names of the volumes with their datasets."""
    return [cases.label(i) for i in range(len(cases))]

"""The demo as a list of commands: what a user would type, in which order."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.data.folders import dataset_id
from nnssl.demo.datasets import LABELLED, UNLABELLED

RANDOM = "random"
PRESET = "nnsslPlans_tiny"
_SOURCE, _TARGET = str(dataset_id(UNLABELLED)), str(dataset_id(LABELLED))
_TRAINER = "nnUNetTrainer_SSLLinearProbe"
_CONFIGURATION = "3d_fullres"
# Some minutes on two cores for every method. So few steps need a higher rate than the papers' 100,000.
_PRETRAINING = ("num_epochs=20", "val_steps_per_epoch=2")
_OF_METHOD = {
    "voco": ("steps_per_epoch=12", "learning_rate=1e-3", "warmup_steps=20", "batch_size=4", "crops=4", "grid=1,3,3",
             "patch_size=16,32,32", "projection_dim=128", "flip_probability=0", "turn_probability=0"),
    "pimpic": ("steps_per_epoch=8", "learning_rate=1e-3", "crops=12", "batch_size=1"),
    "lapn": ("steps_per_epoch=20", "learning_rate=2e-3", "key_momentum=0.99", "queue_size=8192"),
    "sam": ("steps_per_epoch=20", "warmup_steps=20"),
    "alice": ("steps_per_epoch=20", "learning_rate=1e-3", "warmup_steps=20"),
    "mae": ("steps_per_epoch=20", "learning_rate=1e-3", "warmup_steps=20"),
}  # fmt: skip
_OF_OTHERS = ("steps_per_epoch=20", "learning_rate=1e-3")
_PROBE = {
    "nnssl_num_epochs": "8",
    "nnssl_num_iterations_per_epoch": "50",
    "nnssl_num_val_iterations_per_epoch": "2",
    "nnssl_initial_lr": "0.01",
}


@dataclass(frozen=True)
class Folders:
    """Where the demo puts what, below its folder; every pretraining seed but the first has results of its own."""

    home: Path
    seed: int = 0

    @property
    def raw(self) -> Path:
        """nnUNet_raw."""
        return self.home / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """nnUNet_preprocessed."""
        return self.home / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """nnUNet_results of this seed."""
        return self.home / (f"nnUNet_results_seed{self.seed}" if self.seed else "nnUNet_results")

    @property
    def images(self) -> Path:
        """Test images."""
        return self.raw / LABELLED / "imagesTs"

    @property
    def truth(self) -> Path:
        """Their labels."""
        return self.raw / LABELLED / "labelsTs"

    @property
    def splits(self) -> Path:
        """nnU-Net's file that says which cases are for training."""
        return self.preprocessed / LABELLED / "splits_final.json"

    def predictions(self, backbone: str) -> Path:
        """Predicted labels of the test images."""
        return self.home / "predictions" / f"{backbone}_seed{self.seed}"

    def summary(self, backbone: str) -> Path:
        """Their Dice, as nnU-Net's evaluation writes it."""
        return self.predictions(backbone) / "summary.json"

    def pretraining(self, method: str) -> Path:
        """What nnssl_pretrain writes."""
        return self.results / UNLABELLED / f"nnssl_{method}__{PRESET}__{_CONFIGURATION}" / "fold_all"

    def model(self, backbone: str) -> Path:
        """What nnUNetv2_train writes."""
        return self.results / LABELLED / f"{_TRAINER}__{_plans(backbone)}__{_CONFIGURATION}"

    def environment(self) -> dict[str, str]:
        """nnU-Net's three folders."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        key: name in the demo's record and of the log file.
        title: what it does, for the reader.
        command: program and arguments.
        folders: of the seed it belongs to.
        variables: environment that it needs besides nnU-Net's folders.
        product: folder that only this command writes; removed if the command was cut off.
        continues: checkpoint in the product from which `--c` goes on instead.
        shown: which lines of its output the reader sees.
    """

    key: str
    title: str
    command: tuple[str, ...]
    folders: Folders
    variables: dict[str, str] = field(default_factory=dict)
    product: Path | None = None
    continues: Path | None = None
    shown: re.Pattern[str] = re.compile("")

    def line(self, command: tuple[str, ...] | None = None) -> str:
        """The command, or a variant of it, as one would type it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(command or self.command)])


def demo_steps(home: Path, method: str, seeds: tuple[int, ...], device: str) -> list[Step]:
    """All commands in their order: one preprocessing, then for each seed a pretraining and two probes."""
    steps = [
        Step(
            "plan",
            "Plan and preprocess the unlabelled scans, with the preset for small machines",
            ("nnssl_plan_and_preprocess", "-d", _SOURCE, "-p", PRESET),
            Folders(home, seeds[0]),
        )
    ]
    for seed in seeds:
        folders = Folders(home, seed)
        steps += _pretraining(folders, method, device, transfer=seed == seeds[0])
        for backbone in (method, RANDOM):
            steps += _probe(folders, backbone, device)
    return steps


def _pretraining(folders: Folders, method: str, device: str, transfer: bool) -> list[Step]:
    seed, run = folders.seed, folders.pretraining(method)
    pretrain = Step(
        f"pretrain_seed{seed}",
        f"Pretrain with {method}: the network learns from scans alone",
        ("nnssl_pretrain", "-d", _SOURCE, "-m", method, "-p", PRESET, "-device", device, "-o", *_PRETRAINING,
         *_OF_METHOD.get(method, _OF_OTHERS), f"seed={seed}"),
        folders,
        product=run,
        continues=run / "checkpoint_latest.pth",
    )  # fmt: skip
    if not transfer:  # the plans of the first seed name the checkpoint relative to nnUNet_results: they serve all seeds
        return [pretrain]
    titles = {method: "Bring the pretraining to the labelled dataset: plans that fit the network and name its weights",
              RANDOM: "The baseline: plans for the same network with random weights"}  # fmt: skip
    return [pretrain] + [
        Step(f"transfer_{m}", title, ("nnssl_transfer", "-s", _SOURCE, "-t", _TARGET, "-m", m), folders)
        for m, title in titles.items()
    ]


def _probe(folders: Folders, backbone: str, device: str) -> list[Step]:
    name, out, model = f"{backbone}_seed{folders.seed}", folders.predictions(backbone), folders.model(backbone)
    weights = "random" if backbone == RANDOM else "pretrained"
    which = ("-tr", _TRAINER, "-p", _plans(backbone), "-device", device)
    predict = ("nnUNetv2_predict", "-d", _TARGET, "-i", str(folders.images), "-o", str(out), "-c", _CONFIGURATION,
               "-f", "0", *which, "-npp", "1", "-nps", "1")  # fmt: skip
    evaluate = ("nnUNetv2_evaluate_folder", str(folders.truth), str(out), "-djfile", str(out / "dataset.json"),
                "-pfile", str(out / "plans.json"), "-np", "1")  # fmt: skip
    return [
        Step(
            f"train_{name}",
            f"nnU-Net's own training of a linear head on the frozen {weights} network, with few labels",
            ("nnUNetv2_train", _TARGET, _CONFIGURATION, "0", *which),
            folders,
            _PROBE,
            product=model,
            shown=re.compile(r"Backbone from|trainable parameters|: Epoch \d+ *$|Pseudo dice|Mean Validation"),
        ),
        Step(
            f"predict_{name}",
            f"nnU-Net's own prediction of the test scans ({weights})",
            predict,
            folders,
            product=out,
            shown=re.compile(r"^There are|^Predicting "),
        ),
        Step(f"evaluate_{name}", f"nnU-Net's own evaluation ({weights})", evaluate, folders, shown=_NOTHING),
    ]


_NOTHING = re.compile(r"(?!)")


def _plans(backbone: str) -> str:
    return f"{PRESET}From{_SOURCE}_{backbone}"

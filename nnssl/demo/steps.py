"""The demo as a list of the commands that a user would type, and a record of the finished ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnssl.benchmarking.workflow import State, Task
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import DemoFile
from nnssl.data.folders import dataset_id
from nnssl.demo.phantom import LABELLED, UNLABELLED
from nnssl.demo.recipes import Head, head_of, pretraining_options

RANDOM = "random"
PRESET = "nnsslPlans_tiny"
_SOURCE, _TARGET = str(dataset_id(UNLABELLED)), str(dataset_id(LABELLED))
_CONFIGURATION = "3d_fullres"
# Lines of the commands that the user sees: of ours all but those to type next, which the demo types itself.
_OF_OURS = re.compile(r"^(?!next:|  )")
_OF_TRAINING = re.compile(r"Backbone from|trainable parameters|: Epoch \d+ *$|Pseudo dice|Mean Validation")
_OF_PREDICTION = re.compile(r"^There are|^Predicting ")
_NOTHING = re.compile(r"(?!)")
_TILE_STEP = "0.75"  # of a patch: a third of the tiles of nnU-Net's 0.5


@dataclass(frozen=True)
class Folders:
    """Paths below the demo's folder; every pretraining seed but 0 has its own results."""

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
        """Folder of the test images."""
        return self.raw / LABELLED / "imagesTs"

    @property
    def truth(self) -> Path:
        """Folder of their labels."""
        return self.raw / LABELLED / "labelsTs"

    @property
    def splits(self) -> Path:
        """nnU-Net's file with the training and validation cases."""
        return self.preprocessed / LABELLED / "splits_final.json"

    def predictions(self, backbone: str) -> Path:
        """Folder of the predicted labels of the test images."""
        return self.home / "predictions" / f"{backbone}_seed{self.seed}"

    def summary(self, backbone: str) -> Path:
        """nnU-Net's evaluation of them."""
        return self.predictions(backbone) / "summary.json"

    def environment(self) -> dict[str, str]:
        """Variables of nnU-Net's three folders."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }


_FILE = "demo.json"


@dataclass(frozen=True)
class Record:
    """The record of one demo: `demo.json`, written after every step.

    Args:
        home: folder of the demo.
        settings: settings of the steps.
        seconds: duration of each step, over all attempts that it continued from.
        finished: keys of the finished steps.
    """

    home: Path
    settings: dict[str, str]
    seconds: dict[str, float]
    finished: list[str]

    @classmethod
    def open(cls, home: Path, settings: dict[str, str]) -> Record:
        """Read the record of the demo in `home`, or begin a new one.

        Raises:
            UserError: the folder has other content, or a demo with other settings.
        """
        file = home / _FILE
        if not file.is_file():
            if home.exists() and (not home.is_dir() or any(home.iterdir())):
                raise UserError(f"{home} is not empty and has no demo; choose another folder with -o")
            record = cls(home, settings, {}, [])
            record._save()
            return record
        content = read_json(file, DemoFile, f"delete {home}, or choose another folder with -o")
        record = cls(home, content["settings"], content["seconds"], content["finished"])
        if record.settings != settings:
            before = ", ".join(f"{key} {value}" for key, value in record.settings.items())
            raise UserError(f"{home} has a demo with other settings ({before}); choose another folder with -o, or "
                            f"delete that one")  # fmt: skip
        return record

    def note(self, step: str, seconds: float, anew: bool, finished: bool) -> None:
        """Note the seconds of an attempt; `anew` if it started from nothing."""
        self.seconds[step] = round(seconds + (0 if anew else self.seconds.get(step, 0)), 1)
        if finished:
            self.finished.append(step)
        self._save()

    def _save(self) -> None:
        content = {"settings": self.settings, "finished": self.finished, "seconds": self.seconds}
        write_json(self.home / _FILE, content)


@dataclass(frozen=True, kw_only=True)
class Step(Task):
    """A command that the demo's record lists when it is finished.

    Args:
        record: of the demo.
        folders: of its seed.
        continues: checkpoint in the product that `--c` continues from.
    """

    record: Record
    folders: Folders
    continues: Path | None = None
    shown: re.Pattern[str] = _OF_OURS

    def state(self) -> State:
        """Finished if the record says so; an interrupted step without a checkpoint starts again."""
        if self.key in self.record.finished:
            return "finished"
        return "begun" if self.continues is not None and self.continues.is_file() else "missing"

    def environment(self) -> dict[str, str]:
        """A task's variables without the caller's `nnssl_...`, with the demo's folders and at most a worker a core."""
        given = {name: value for name, value in super().environment().items() if not name.startswith("nnssl_")}
        workers = str(min(4, os.cpu_count() or 1))
        return {**given, "nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": workers, "nnUNet_compile": "f",
                **self.folders.environment(), **self.variables}  # fmt: skip

    def note(self, seconds: float, code: int | None, anew: bool) -> float:
        """Keep it in the record."""
        self.record.note(self.key, seconds, anew, finished=code == 0)
        return self.record.seconds[self.key]


def demo_steps(record: Record, method: str, seeds: tuple[int, ...], device: str) -> list[Step]:
    """All commands in their order: one preprocessing, then for each seed a pretraining and two trainings."""
    title = "Plan and preprocess the unlabelled scans, with the preset for small machines"
    command = ("nnssl_plan_and_preprocess", "-d", _SOURCE, "-p", PRESET)
    steps = [Step(record.home, "plan", title, command, record=record, folders=Folders(record.home, seeds[0]))]
    for seed in seeds:
        step = partial(Step, record.home, record=record, folders=Folders(record.home, seed))
        steps.append(_pretraining(step, Folders(record.home, seed), method, device))
        if seed == seeds[0]:  # the plans serve all seeds: they name the checkpoint relative to nnUNet_results
            steps += [_transfer(step, backbone) for backbone in (method, RANDOM)]
        for backbone in (method, RANDOM):
            steps += _training(step, Folders(record.home, seed), backbone, head_of(method), device)
    return steps


def _pretraining(step: Callable[..., Step], folders: Folders, method: str, device: str) -> Step:
    run = folders.results / UNLABELLED / f"nnssl_{method}__{PRESET}__{_CONFIGURATION}" / "fold_all"
    title = f"Pretrain with {method}: the network learns from scans alone"
    options = pretraining_options(method, folders.seed)
    command = ("nnssl_pretrain", "-d", _SOURCE, "-m", method, "-p", PRESET, "-device", device, *options)
    return step(f"pretrain_seed{folders.seed}", title, command, product=run, continues=run / "checkpoint_latest.pth")


def _transfer(step: Callable[..., Step], backbone: str) -> Step:
    title = "Bring the pretraining to the labelled dataset: plans that fit the network and name its weights"
    if backbone == RANDOM:
        title = "The baseline: plans for the same network with random weights"
    return step(f"transfer_{backbone}", title, ("nnssl_transfer", "-s", _SOURCE, "-t", _TARGET, "-m", backbone))


def _training(step: Callable[..., Step], folders: Folders, backbone: str, head: Head, device: str) -> list[Step]:
    name, out = f"{backbone}_seed{folders.seed}", folders.predictions(backbone)
    plans = f"{PRESET}From{_SOURCE}_{backbone}"
    weights = "random" if backbone == RANDOM else "pretrained"
    which = ("-tr", head.trainer, "-p", plans, "-device", device)
    train = ("nnUNetv2_train", _TARGET, _CONFIGURATION, "0", *which)
    product = folders.results / LABELLED / f"{head.trainer}__{plans}__{_CONFIGURATION}"
    # 0 processes: nnU-Net's own ones would import everything again
    predict = ("nnUNetv2_predict", "-d", _TARGET, "-i", str(folders.images), "-o", str(out), "-c", _CONFIGURATION,
               "-f", "0", *which, "-step_size", _TILE_STEP, "-npp", "0", "-nps", "0")  # fmt: skip
    evaluate = ("nnUNetv2_evaluate_folder", str(folders.truth), str(out), "-djfile", str(out / "dataset.json"),
                "-pfile", str(out / "plans.json"), "-np", "1")  # fmt: skip
    return [
        step(f"train_{name}", head.title.format(weights=weights), train, dict(head.variables), product=product,
             shown=_OF_TRAINING),
        step(f"predict_{name}", f"nnU-Net's own prediction of the test scans ({weights})", predict, product=out,
             shown=_OF_PREDICTION),
        step(f"evaluate_{name}", f"nnU-Net's own evaluation ({weights})", evaluate, shown=_NOTHING),
    ]  # fmt: skip

"""What to type next: the lines that commands end with, in one voice."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.folders import dataset_argument
from nnssl.data.raw import number_of_labels
from nnssl.data.report import PreparedDataset

STOCK_PLANS, STOCK_CONFIGURATION = "nnUNetPlans", "3d_fullres"
INPUT, OUTPUT = "INPUT", "OUTPUT"  # folders that only the user knows
_FOLDS = 5  # that nnU-Net splits a dataset into
_FINAL = "checkpoint_final.pth"  # that nnUNetv2_predict takes without -chk

ANY_TRAINER = "nnUNetTrainer_SSLProbe"
# By method, on plans of nnssl_transfer: what its paper does downstream.
TRAINERS = {
    "vox2vec": "nnUNetTrainer_Vox2vecProbe",
    "pimpic": "nnUNetTrainer_PimpicFinetune",
    "voco": "nnUNetTrainer_VoCoFinetune",
    "lapn": "nnUNetTrainer_LAPN",
    "sam": "nnUNetTrainer_SSLEncodings",
    "mae": "nnUNetTrainer_MAEFinetune",
    "alice": "nnUNetTrainer_AliceFinetune",
    "simclr": "nnUNetTrainer_SSLUNetFinetune",
    "unet_mae": "nnUNetTrainer_SSLUNetFinetune",
    "volumefusion": "nnUNetTrainer_SSLUNetFinetune",
    "imported": "nnUNetTrainer_SSLUNetFinetune",  # by nnssl_import
}
# Presets for trainings, not for pretrainings.
_TRAINED_WITH = {
    "nnsslPlans_lapn_segmentation": "nnUNetTrainer_LAPN",
    "nnsslPlans_lapn_student": "nnUNetTrainer_LAPNDistill",
}
_PRETRAINED_WITH = {"nnsslPlans_primus": "mae"}  # others are named after their method
# Their trainers bring the pretraining's network to any plans; others continue in the network of the plans.
_BRING_THEIR_NETWORK = {"vox2vec", "lapn", "sam"}


@dataclass(frozen=True)
class Way:
    """Lines to type one after the other.

    Args:
        commands: each one line.
        about: what they do, as a verb phrase; shown if there is a choice of ways.
    """

    commands: tuple[str, ...]
    about: str = ""


def rendered(ways: Sequence[Way]) -> str:
    """The lines under the word "next:"; where there is a choice, a comment stands above each way."""
    lines = ["next:"]
    for number, way in enumerate(ways):
        if len(ways) > 1:
            lines.append(f"  # {'or ' if number else ''}{way.about}")
        lines += [f"  {line}" for line in way.commands]
    return "\n".join(lines)


def commands_of(ways: Iterable[Way]) -> tuple[str, ...]:
    """All lines of all ways, in order."""
    return tuple(line for way in ways for line in way.commands)


def command(*words: object) -> str:
    """A line for a shell; words are quoted where they need it."""
    return shlex.join(str(word) for word in words)


def dataset_word(name: str) -> str:
    """`dataset_argument`, to be quoted by `command`."""
    (word,) = shlex.split(dataset_argument(name))
    return word


def device_flag(device: str | None = None, ours: bool = False) -> tuple[str, ...]:
    """`-device` and its value where the next command would choose another device.

    Args:
        device: that the work was done on; None for the usual one.
        ours: whether the next command is one of ours, which choose the usual device; nnU-Net's choose cuda.
    """
    from nnssl.core.distributed import usual_device

    usual = usual_device()
    device = device or usual
    return () if device == (usual if ours else "cuda") else ("-device", device)


def plan_lines(*datasets: str) -> tuple[str, ...]:
    """Lines that make nnU-Net's own plans and volumes of labelled datasets, which nnUNetv2_train needs without -p.

    nnU-Net's command takes only numbers. Our command, which makes the same plans, takes the datasets that need a name.
    """
    words = [dataset_word(name) for name in datasets]
    named = [word for word in words if word.startswith("Dataset")]
    numbers = [word for word in words if word not in named]
    stock = [command("nnUNetv2_plan_and_preprocess", "-d", *numbers, "-c", STOCK_CONFIGURATION)] if numbers else []
    return (*stock, *(command("nnssl_plan_and_preprocess", "-d", word, "-c", STOCK_CONFIGURATION) for word in named))


def trainer_for(method: str, any_plans: bool = False) -> str:
    """Trainer to begin with after a pretraining.

    Args:
        method: of the pretraining.
        any_plans: whether it must bring the pretraining's network to plans of another one.
    """
    if any_plans and method not in _BRING_THEIR_NETWORK:
        return ANY_TRAINER
    return TRAINERS.get(method, ANY_TRAINER)


def first_fold(cases: int, home: Path) -> str:
    """Fold to begin with: 0, or all where a dataset has too few cases for nnU-Net's five folds and no split."""
    return "0" if cases >= _FOLDS or (home / "splits_final.json").is_file() else "all"


def after_planning(prepared: Sequence[PreparedDataset], parts: int, *flags: str) -> list[Way]:
    """From planned datasets to a pretraining, or to a training where the plans are a preset for trainings.

    Args:
        prepared: the first one's plans are shared.
        parts: jobs that share the volumes.
        flags: for `nnssl_pretrain`.
    """
    first, about = prepared[0], "" if parts == 1 else f" when all {parts} parts are done"
    plans, configuration = first.plans_name, first.configuration
    if plans in _TRAINED_WITH:
        labels = number_of_labels(Path(os.environ["nnUNet_raw"]) / first.name)
        fold = first_fold(labels, first.folder.parent)
        train = train_line(first.name, configuration, fold, trainer=_TRAINED_WITH[plans], plans=plans)
        return [Way((train,), f"train{about}")]
    named = (method for method in TRAINERS if plans.startswith(f"nnsslPlans_{method}"))
    method = _PRETRAINED_WITH.get(plans) or next(named, "vox2vec")
    words = ["nnssl_pretrain", "-d", *(dataset_word(dataset.name) for dataset in prepared), "-m", method]
    words += ["-p", plans] if plans != STOCK_PLANS else []
    words += ["-c", configuration] if configuration != STOCK_CONFIGURATION else []
    return [Way((command(*words, *flags),), f"pretrain{about}")]


def train_line(
    dataset: str,
    configuration: str,
    fold: str,
    *flags: object,
    trainer: str | None = None,
    plans: str = STOCK_PLANS,
    device: str | None = None,
) -> str:
    """The line that trains on a dataset; `flags` come before -device."""
    words: list[object] = ["nnUNetv2_train", dataset_word(dataset), configuration, fold]
    words += ["-tr", trainer] if trainer else []
    words += ["-p", plans] if plans != STOCK_PLANS else []
    return command(*words, *flags, *device_flag(device))


def predict_line(
    dataset: str, configuration: str, fold: int | str, trainer: str, plans: str, checkpoint: str, device: str
) -> str:
    """The line that predicts with a trained network, on the dataset's test images if there are any."""
    images = Path(os.environ.get("nnUNet_raw") or os.devnull) / dataset / "imagesTs"
    given = images if images.is_dir() and any(os.scandir(images)) else INPUT
    words: list[object] = ["nnUNetv2_predict", "-d", dataset_word(dataset), "-i", given, "-o", OUTPUT]
    words += ["-c", configuration, "-f", fold, "-tr", trainer]
    words += ["-p", plans] if plans != STOCK_PLANS else []
    words += ["-chk", checkpoint] if checkpoint != _FINAL else []
    return command(*words, *device_flag(device))

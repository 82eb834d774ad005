"""Which pretraining a training starts from: the one that is named, or the one of all finished ones that fits best."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from nnssl.checkpoints.files import FINAL
from nnssl.checkpoints.intensity import bridge_intensities
from nnssl.checkpoints.pretrained import (
    RANDOM,
    VARIABLE,
    Pretrained,
    finished_pretrainings,
    load_pretrained,
    read_pretrained,
)
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_argument
from nnssl.data.guard import ALLOWED, Images, check_images
from nnssl.finetuning.segmentation import UNET, build_segmentation
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import network_entries, resolve_configuration

ENCODINGS: Literal["encodings"] = "encodings"  # in place of a head: the training reads what a frozen pixel encoder says
Head = Literal["linear", "nonlinear", "unet", "encodings"]

_ANY_METHOD = {
    "linear": "nnUNetTrainer_SSLLinearProbe",
    "nonlinear": "nnUNetTrainer_SSLProbe",
    UNET: "nnUNetTrainer_SSLUNetFinetune",
    ENCODINGS: "nnUNetTrainer_SSLEncodings",
}
_MASKED = {"alice": "nnUNetTrainer_AliceFinetune", "mae": "nnUNetTrainer_MAEFinetune"}  # one cannot stand for the other


@dataclass(frozen=True)
class Wanted:
    """What a trainer wants of a pretraining.

    Args:
        trainer: its name, for messages.
        method: the only one that will do; None for any.
        head: see `nnssl.finetuning.segmentation.build_segmentation`; or `encodings`.
        plans: of the target.
        configuration: of the target.
        seen: channels of the target and orientations of its training volumes, as far as known.
    """

    trainer: str
    method: str | None
    head: Head
    plans: dict[str, Any]
    configuration: str
    seen: Images | None = None

    @property
    def allows(self) -> bool:
        """Whether the plans say that other intensities than the pretraining's are meant."""
        return bool(self.plans.get("nnssl", {}).get(ALLOWED))

    @property
    def for_any_method(self) -> str:
        """The trainer that does the same from a pretraining of any method."""
        finetunes = self.head == "nonlinear" and self.trainer.endswith("Finetune")
        return "nnUNetTrainer_SSLFinetune" if finetunes else _ANY_METHOD[self.head]

    def refuse_method(self, method: str) -> str:
        """What to say of a pretraining with a method that will not do, as the end of a sentence."""
        other = _MASKED.get(method, self.for_any_method) if self.head == UNET else self.for_any_method
        return (f"was pretrained with {method}, and {self.trainer} is for {self.method}: type -tr {other}, or pretrain "
                f"{self.method}")  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A checkpoint, None for random weights; and a sentence where it was chosen among several."""

    path: Path | None
    note: str | None = None


def find_checkpoint(wanted: Wanted, results: Path) -> Choice:
    """Checkpoint to start from: that of the plans, else that of the environment, else the finished one that fits best.

    Of the finished ones count those of the wanted method whose channels and intensities suit the target, and for a
    trainer that goes on with the plans' own network those of that network. Among several the one with the target's
    spacing, axes and network is taken, and of those the newest.

    Args:
        wanted: the target and its trainer.
        results: nnUNet_results, which relative paths in the plans start from.

    Raises:
        UserError: plans and environment disagree; there is no such file; no pretraining is finished or none fits, with
            the reason of each.
    """
    planned = _named(wanted.plans.get("nnssl", {}).get("checkpoint"), results, "the plans")
    asked = _named(os.environ.get(VARIABLE), Path.cwd(), VARIABLE)
    if planned and asked and planned != asked:
        raise UserError(f"the plans name the checkpoint {planned} and {VARIABLE} names {asked}; unset it, or take "
                        f"other plans with -p (nnssl_transfer -m random makes some for random weights)")  # fmt: skip
    chosen = planned or asked
    if chosen is None:
        return _best(wanted, results)
    return Choice(None if chosen == RANDOM else Path(chosen))


def _named(value: str | None, base: Path, where: str) -> str | None:
    """Full path of the checkpoint of a RUN; `random` stays."""
    if not value or value == RANDOM:
        return value or None
    try:
        return str(checkpoint_of((base / value).resolve()))
    except UserError as error:
        raise UserError(f"{where} names a pretraining that cannot be used: {error}; or name another with "
                        f"export {VARIABLE}=/path/to/it") from error  # fmt: skip


def _best(wanted: Wanted, results: Path) -> Choice:
    found = finished_pretrainings(results)
    if not found:
        of_method = f" of {wanted.method}" if wanted.method else ""
        raise UserError(f"there is no finished pretraining{of_method} in {results}; run nnssl_pretrain -d DATASET -m "
                        f"{wanted.method or 'METHOD'} first, or name a checkpoint with export "
                        f"{VARIABLE}=/path/to/{FINAL} (or export {VARIABLE}={RANDOM} for random weights)")  # fmt: skip
    fitting: list[tuple[bool, float, Path]] = []
    reasons: dict[Path, str] = {}
    for path in found:
        try:
            source = read_pretrained(path, mapped=True)
            check_fits(source, wanted)
        except UserError as error:
            reasons[path] = str(error).replace(f"{path} ", "", 1)
        else:
            fitting.append((same_plans(source, wanted), path.stat().st_mtime, path))
    if not fitting:
        listed = "".join(f"\n  {path.parent}: {reason}" for path, reason in reasons.items())
        raise UserError(f"none of the finished pretrainings fits {wanted.trainer} on {wanted.plans['plans_name']}; "
                        f"pretrain one that does, or name a checkpoint with export {VARIABLE}=:{listed}")  # fmt: skip
    same, _, path = max(fitting)
    return Choice(path, _note(path, same, (other for *_, other in fitting if other != path)))


def _note(path: Path, same: bool, others: Iterable[Path]) -> str | None:
    listed = ", ".join(str(other.parent) for other in others)
    if not listed:
        return None
    why = "the newest with the network, spacing and axes of these plans" if same else "the newest that fits"
    return f"starts from {path.parent}, {why}; export {VARIABLE}=... takes another one that fits: {listed}"


def check_fits(source: Pretrained, wanted: Wanted) -> None:
    """Raise UserError, which names the checkpoint, where a training cannot start from a pretraining."""
    if wanted.method not in (None, source.method):
        raise UserError(f"{source.path} {wanted.refuse_method(source.method)}")
    if wanted.head == ENCODINGS and not issubclass(get_method(source.method), PixelMethod):
        raise UserError(f"{source.path} was pretrained with {source.method}, which encodes no single pixels, and "
                        f"{wanted.trainer} reads such encodings; pretrain lapn or sam")  # fmt: skip
    names = (wanted.configuration, source.configuration)
    bridge = bridge_intensities(wanted.plans, source.plans, names, wanted.allows)
    image_warnings(wanted, source)
    if wanted.head == UNET:
        resolved = resolve_configuration(wanted.plans, wanted.configuration)
        network = {"levels": source.levels, "head": UNET, "intensity": bridge.channels}
        with torch.device("meta"):  # for the names and shapes only
            built = build_segmentation(network, resolved, len(resolved["normalization_schemes"]), 2)
        load_pretrained(built, source, transfer_advice(wanted.plans, source))


def same_plans(source: Pretrained, wanted: Wanted) -> bool:
    """Whether network, spacing and order of the axes of pretraining and target are the same."""
    own, given = (resolve_configuration(p, c) for p, c in
                  ((wanted.plans, wanted.configuration), (source.plans, source.configuration)))  # fmt: skip
    axes = (p.get("transpose_forward") for p in (wanted.plans, source.plans))
    return (
        network_entries(own) == network_entries(given)
        and list(own["spacing"]) == list(given["spacing"])
        and len(set(map(str, axes))) == 1
    )


def transfer_advice(plans: dict[str, Any], source: Pretrained) -> str:
    """What to do where the target's plans do not fit the pretraining, as the end of a sentence."""
    source_id, target_id = (dataset_argument(str(p["dataset_name"])) for p in (source.plans, plans))
    return (f"run nnssl_transfer -s {source_id} -t {target_id} -m {source.method}, which makes plans with the "
            f"pretraining's network, spacing and intensities, and train with those")  # fmt: skip


def image_warnings(wanted: Wanted, source: Pretrained) -> list[str]:
    """How the target's volumes look otherwise than the pretraining's, in sentences.

    Raises:
        UserError: they are of another modality, and the plans do not say that this is meant.
    """
    plans, resolved = wanted.plans, resolve_configuration(wanted.plans, wanted.configuration)
    given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
    own = replace(wanted.seen or Images(""), name=str(plans["dataset_name"]), spacing=resolved["spacing"],
                  axes=plans.get("transpose_forward", [0, 1, 2]))  # fmt: skip
    return check_images(given, own, wanted.allows, advice=transfer_advice(plans, source),
                        way=f"train with the plans of nnssl_transfer --{ALLOWED}")  # fmt: skip

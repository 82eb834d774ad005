"""What a training starts from: which pretraining, whether it fits, and what the network needs of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from nnssl.checkpoints.files import FINAL, load_checkpoint
from nnssl.checkpoints.intensity import bridge_intensities
from nnssl.checkpoints.origin import derived, origin_of
from nnssl.checkpoints.pretrained import (
    RANDOM,
    VARIABLE,
    Pretrained,
    finished_pretrainings,
    load_pretrained,
    name_of,
    pixel_encoder_of,
    pretrained_of,
)
from nnssl.checkpoints.runs import checkpoint_of, source_argument
from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_argument
from nnssl.data.guard import ALLOWED, Images, check_images
from nnssl.finetuning.segmentation import UNET, build_segmentation, refuse_second_stage
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import network_entries, resolve_configuration

ENCODINGS: Literal["encodings"] = "encodings"  # in place of a head: the training reads a frozen encoder's encodings
Head = Literal["linear", "nonlinear", "unet", "encodings"]

_ANY_METHOD = {
    "linear": "nnUNetTrainer_SSLLinearProbe",
    "nonlinear": "nnUNetTrainer_SSLProbe",
    UNET: "nnUNetTrainer_SSLUNetFinetune",
    ENCODINGS: "nnUNetTrainer_SSLEncodings",
}
_MASKED = {"alice": "nnUNetTrainer_AliceFinetune", "mae": "nnUNetTrainer_MAEFinetune"}  # neither replaces the other


@dataclass(frozen=True)
class Wanted:
    """What a trainer wants of a pretraining.

    Args:
        trainer: its name, for messages.
        method: the only one that will do; None for any.
        head: see `nnssl.finetuning.segmentation.build_segmentation`; or `encodings`.
        plans: of the target.
        configuration: of the target.
        seen: channels of the target and orientations of its training volumes, where known.
    """

    trainer: str
    method: str | None
    head: Head
    plans: dict[str, Any]
    configuration: str
    seen: Images | None = None

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The target's configuration; raises UserError where it is missing or 2D."""
        return resolve_configuration(self.plans, self.configuration)

    @property
    def block(self) -> dict[str, Any]:
        """A copy of `plans["nnssl"]`, empty where the plans have none."""
        return dict(self.plans.get("nnssl", {}))

    def refuse_method(self, method: str) -> str:
        """What to say of a pretraining with a method that will not do, as the end of a sentence."""
        finetunes = self.head == "nonlinear" and "Finetune" in self.trainer
        other = "nnUNetTrainer_SSLFinetune" if finetunes else _ANY_METHOD[self.head]
        other = _MASKED.get(method, other) if self.head == UNET else other
        return (f"was pretrained with {method}, and {self.trainer} is for {self.method}: type -tr {other}, or pretrain "
                f"{self.method}")  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """A pretraining that a training can start from.

    Args:
        source: the transferred part of its checkpoint.
        content: of the checkpoint.
        intensity: channels of `IntensityBridge`; None where both plans give the same values.
        advice: what to do where the architectures differ, as the end of a sentence.
        warnings: how the images differ from those of the pretraining, in sentences.
    """

    source: Pretrained
    content: dict[str, Any]
    intensity: list[dict[str, float]] | None
    advice: str
    warnings: list[str]


@dataclass(frozen=True)
class Choice:
    """A checkpoint, None for random weights; how it fits, where it is the only finished one; else why it was chosen."""

    path: Path | None
    note: str | None = None
    fit: Fit | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Args:
        block: `plans["nnssl"]`: checkpoint, method, levels, and in `network` what the network is built from.
        source: the pretrained weights; None for random ones.
        advice: what to do where the architectures differ.
        warnings: sentences.
        notes: sentences that are no warnings, such as which pretraining was chosen.
    """

    block: dict[str, Any]
    source: Pretrained | None
    advice: str
    warnings: list[str]
    notes: list[str] = field(default_factory=list)


def find_start(wanted: Wanted, from_scratch: bool, results: Path) -> Start:
    """Find the checkpoint, check that it fits, and read all that the network needs of it.

    Args:
        wanted: the target, with or without the block `nnssl` in its plans, and its trainer.
        from_scratch: take random weights and look for no checkpoint.
        results: nnUNet_results.

    Raises:
        UserError: no checkpoint, one of another method or modality, intensities that cannot be bridged, or random
            weights where encodings are wanted; a 2D or unknown configuration, or the second stage of a cascade.
    """
    refuse_second_stage(wanted.resolved, wanted.configuration, wanted.trainer)
    choice = Choice(None) if from_scratch else find_checkpoint(wanted, results)
    if choice.path is None:
        return _random_start(wanted, results)
    fit = choice.fit or _fit(choice.path, wanted)
    source, network, notes = _encoder(fit) if wanted.head == ENCODINGS else _network(fit, wanted)
    found = {"checkpoint": name_of(choice.path, results), "method": source.method, "levels": source.levels}
    found |= derived(origin_of(fit.content))  # the licence goes with what is trained from them
    notes += [choice.note] if choice.note else []
    return Start({**wanted.block, **found, "network": network}, source, fit.advice, fit.warnings, notes)


def _random_start(wanted: Wanted, results: Path) -> Start:
    if wanted.head == ENCODINGS:
        raise UserError(f"{wanted.trainer} needs the encodings of a pretraining, and random weights are asked for; "
                        f"train nnUNetTrainer_LAPNScratch to see what the encodings bring")  # fmt: skip
    method = wanted.block.get("method") or wanted.method
    levels = wanted.block.get("levels") or (get_method(method).levels if method else "decoder")
    network = {"levels": levels, "head": wanted.head, "intensity": None}
    found = {"checkpoint": name_of(None, results), "method": method, "levels": levels, "network": network}
    return Start({**wanted.block, **found}, None, "", [])


def _network(fit: Fit, wanted: Wanted) -> tuple[Pretrained, dict[str, Any], list[str]]:
    """The weights, what the network is built from, and notes.

    A head of this package stands on the pretraining's network where the target's plans have another one. Plans that
    agree keep the form in which trainings of earlier versions describe their network.
    """
    source = fit.source
    network = {"levels": source.levels, "head": wanted.head, "intensity": fit.intensity}
    theirs = network_entries(resolve_configuration(source.plans, source.configuration))
    if wanted.head == UNET or theirs == network_entries(wanted.resolved):
        return source, network, []
    return source, {**network, "backbone": theirs}, [
        f"the backbone is the pretraining's own network, which is not that of these plans; to have its spacing, patch "
        f"and intensities too, {fit.advice}"
    ]  # fmt: skip


def _encoder(fit: Fit) -> tuple[Pretrained, dict[str, Any], list[str]]:
    """As `_network`, for a training on the encodings of the frozen encoder."""
    encoder = pixel_encoder_of(fit.content, fit.source.path)
    state = encoder.encoder.state_dict()
    left = {name: number for name, number in fit.source.others.items() if name not in state}
    network = {"encoder": encoder.architecture, "intensity": fit.intensity}
    return replace(fit.source, backbone=state, others=left), network, []


def find_checkpoint(wanted: Wanted, results: Path) -> Choice:
    """Checkpoint to start from: that of the plans, else that of the environment, else the finished one that fits best.

    A finished one fits if it has the wanted method and its channels and intensities suit the target; a trainer that
    goes on with the plans' own network also wants that network. Among several, those with the target's spacing, axes
    and network come first, then the newest.

    Args:
        wanted: the target and its trainer.
        results: nnUNet_results, which relative paths in the plans start from.

    Raises:
        UserError: plans and environment disagree; there is no such file; no pretraining is finished or none fits, with
            the reason of each.
    """
    planned = _named(wanted.block.get("checkpoint"), results, "the plans")
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
    fitting: dict[Path, Fit] = {}
    reasons: dict[Path, str] = {}
    for path in found:
        try:
            fitting[path] = _fit(path, wanted, mapped=len(found) > 1)
        except UserError as error:
            reasons[path] = str(error).replace(f"{path} ", "", 1)
    if not fitting:
        listed = "".join(f"\n  {path.parent}: {reason}" for path, reason in reasons.items())
        raise UserError(f"none of the finished pretrainings fits {wanted.trainer} on {wanted.plans['plans_name']}; "
                        f"pretrain one that does, or name a checkpoint with export {VARIABLE}=:{listed}")  # fmt: skip
    same = {path: _same_plans(fit.source, wanted) for path, fit in fitting.items()}
    best = max(fitting, key=lambda path: (same[path], path.stat().st_mtime, path))
    if len(fitting) == 1:
        return Choice(best, fit=fitting[best] if len(found) == 1 else None)
    why = "the newest with the network, spacing and axes of these plans" if same[best] else "the newest that fits"
    others = ", ".join(str(path.parent) for path in fitting if path != best)
    note = f"starts from {best.parent}, {why}; export {VARIABLE}=... takes another one that fits: {others}"
    return Choice(best, note)


def _fit(path: Path, wanted: Wanted, mapped: bool = False) -> Fit:
    """Raise UserError, which names the checkpoint, where a training cannot start from it.

    Of a `mapped` checkpoint nothing is read but what the comparison needs; it must be read whole to start from it.
    """
    content = load_checkpoint(path, mapped)
    source = pretrained_of(content, path)
    if wanted.method not in (None, source.method, source.made_by):
        raise UserError(f"{path} {wanted.refuse_method(source.method)}")
    if wanted.head == ENCODINGS and not issubclass(get_method(source.method), PixelMethod):
        raise UserError(f"{path} was pretrained with {source.method}, which encodes no single pixels, and "
                        f"{wanted.trainer} reads such encodings; pretrain lapn or sam")  # fmt: skip
    target_id = dataset_argument(str(wanted.plans["dataset_name"]))
    advice = (f"run nnssl_transfer -s {source_argument(source)} -t {target_id} -m {source.method}, which makes plans "
              f"with the pretraining's network, spacing and intensities, and train with those")  # fmt: skip
    allowed = bool(wanted.block.get(ALLOWED))
    bridge = bridge_intensities(wanted.plans, source.plans, (wanted.configuration, source.configuration), allowed)
    given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
    own = replace(wanted.seen or Images(""), name=str(wanted.plans["dataset_name"]), spacing=wanted.resolved["spacing"],
                  axes=wanted.plans.get("transpose_forward", [0, 1, 2]))  # fmt: skip
    warnings = check_images(given, own, allowed, advice=advice,
                            way=f"train with the plans of nnssl_transfer --{ALLOWED}")  # fmt: skip
    if wanted.head == UNET:
        network = {"levels": source.levels, "head": UNET, "intensity": bridge.channels}
        with torch.device("meta"):  # for the names and shapes only
            built = build_segmentation(network, wanted.resolved, len(wanted.resolved["normalization_schemes"]), 2)
        load_pretrained(built, source, advice)
    return Fit(source, content, bridge.channels, advice, [*bridge.warnings, *warnings])


def _same_plans(source: Pretrained, wanted: Wanted) -> bool:
    """Whether network, spacing and order of the axes of pretraining and target are the same."""
    given = resolve_configuration(source.plans, source.configuration)
    axes = (plans.get("transpose_forward") for plans in (wanted.plans, source.plans))
    return (
        network_entries(wanted.resolved) == network_entries(given)
        and list(wanted.resolved["spacing"]) == list(given["spacing"])
        and len(set(map(str, axes))) == 1
    )

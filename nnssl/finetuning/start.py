"""What a training starts from: the checkpoint, the bridge to its intensities, and what the user should know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nnssl.core.json_files import write_json
from nnssl.data.guard import ALLOWED, Images, check_images
from nnssl.errors import UserError
from nnssl.finetuning.intensity import bridge_intensities
from nnssl.finetuning.pretrained import Pretrained, find_checkpoint, name_of, read_pretrained
from nnssl.finetuning.transfer import TransferReport
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration

RECORD = "nnssl_transfer.json"
_ANY_UNET = "nnUNetTrainer_SSLUNetFinetune"
_MASKED = {"alice": "nnUNetTrainer_AliceFinetune", "mae": "nnUNetTrainer_MAEFinetune"}  # one cannot stand for the other


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Args:
        block: `plans["nnssl"]`: checkpoint, method, levels, and in `network` what the network is built from.
        source: the pretrained weights; None for random ones.
        advice: what to do where the architectures differ.
        warnings: sentences.
    """

    block: dict[str, Any]
    source: Pretrained | None
    advice: str
    warnings: list[str]


def find_start(
    plans: dict[str, Any],
    configuration: str,
    trainer: str,
    method: str | None,
    head: str,
    from_scratch: bool,
    results: Path,
    seen: Images | None = None,
) -> Start:
    """Resolve the checkpoint and all that the network needs of it.

    Args:
        plans: of the target, with or without the block `nnssl`.
        configuration: of the target.
        trainer: name, for messages.
        method: the only one that will do; None for any.
        head: of the network, see `build_segmentation`.
        from_scratch: random weights, no checkpoint is looked for.
        results: nnUNet_results.
        seen: channels of the target and orientations of its training volumes, as far as known.

    Raises:
        UserError: no checkpoint or several, of another method, of another modality, with intensities that cannot be
            bridged; a 2D or unknown configuration.
    """
    resolved = resolve_configuration(plans, configuration)
    refuse_second_stage(resolved, configuration, trainer)
    block = dict(plans.get("nnssl", {}))
    path = None if from_scratch else find_checkpoint(block, method, results)
    if path is None:
        of_method = block.get("method") or method
        levels = block.get("levels") or (get_method(of_method).levels if of_method else "decoder")
        resolved_block = {"checkpoint": name_of(None, results), "method": of_method, "levels": levels}
        network = {"levels": levels, "head": head, "intensity": None}
        return Start({**block, **resolved_block, "network": network}, None, "", [])
    source = read_pretrained(path)
    if method not in (None, source.method):
        of_any = _ANY_UNET if head == "unet" else trainer.replace(str(method).capitalize(), "SSL")
        other = _MASKED.get(source.method, of_any)
        raise UserError(f"{trainer} is for {method} and {path} was pretrained with {source.method}; use {other}, or "
                        f"another checkpoint")  # fmt: skip
    bridge = bridge_intensities(plans, source.plans, (configuration, source.configuration), bool(block.get(ALLOWED)))
    network = {"levels": source.levels, "head": head, "intensity": bridge.channels}
    resolved_block = {"checkpoint": name_of(path, results), "method": source.method, "levels": source.levels}
    advice = transfer_advice(plans, source)
    warnings = [*bridge.warnings, *image_warnings(plans, resolved, source, seen, advice)]
    return Start({**block, **resolved_block, "network": network}, source, advice, warnings)


def refuse_second_stage(resolved: dict[str, Any], configuration: str, trainer: str) -> None:
    """Raise UserError for the second stage of a cascade."""
    if resolved.get("previous_stage") is not None:
        raise UserError(f"{configuration} also reads the segmentation of {resolved['previous_stage']}, which no "
                        f"pretraining did; train 3d_fullres or 3d_lowres with {trainer}")  # fmt: skip


def refuse_mixture(start: Start, model_folder: Path, fold_folder: Path) -> None:
    """Make sure that a training replaces no fold that began elsewhere, and predicts together with the other folds.

    All folds of a model share one plans.json, which prediction builds the network from.

    Raises:
        UserError: naming the folder and what to do.
    """
    record = fold_folder / RECORD
    if record.is_file() and any(fold_folder.glob("checkpoint_*.pth")):
        before, now = json.loads(record.read_text())["checkpoint"], start.block["checkpoint"]
        if before != now:
            raise UserError(f"{fold_folder} holds a training that started from {before}, and this one would start from "
                            f"{now} and replace it; move that folder away, or train under plans of another name "
                            f"(nnssl_transfer makes them)")  # fmt: skip
    plans, others = model_folder / "plans.json", model_folder.glob("fold_*/checkpoint_*.pth")
    if plans.is_file() and any(file.parent != fold_folder for file in others):
        network = json.loads(plans.read_text()).get("nnssl", {}).get("network")
        if network is not None and network != start.block["network"]:
            raise UserError(f"the other folds in {model_folder} were trained with another network or other intensities "
                            f"({network}), and all folds predict with one; start this fold from the same kind of "
                            f"pretraining, or move the folder away")  # fmt: skip


def write_record(start: Start, report: TransferReport | None, fold_folder: Path) -> None:
    """Keep beside the training what it started from, as JSON."""
    content = {**start.block, "warnings": start.warnings, "report": None if report is None else asdict(report)}
    write_json(fold_folder / RECORD, content)


def transfer_advice(plans: dict[str, Any], source: Pretrained) -> str:
    """What to do where the target's plans do not fit the pretraining, as the end of a sentence."""
    ids = [int(str(p["dataset_name"])[len("Dataset") :].split("_")[0]) for p in (source.plans, plans)]
    return (f"run nnssl_transfer -s {ids[0]} -t {ids[1]} -m {source.method}, which makes plans with the pretraining's "
            f"network, spacing and intensities, and train with those")  # fmt: skip


def image_warnings(
    plans: dict[str, Any], resolved: dict[str, Any], source: Pretrained, seen: Images | None, advice: str
) -> list[str]:
    """How the target's volumes look otherwise than the pretraining's, in sentences.

    Raises:
        UserError: they are of another modality, and the plans do not say that this is meant.
    """
    given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
    own = replace(seen or Images(""), name=str(plans["dataset_name"]), spacing=resolved["spacing"],
                  axes=plans.get("transpose_forward", [0, 1, 2]))  # fmt: skip
    allow = bool(plans.get("nnssl", {}).get(ALLOWED))
    return check_images(given, own, allow, advice=advice, way=f"train with the plans of nnssl_transfer --{ALLOWED}")

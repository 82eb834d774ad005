"""What a training starts from: the checkpoint, the bridge to its intensities, and what the user should know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnssl.core.json_files import checked, read_json, write_json
from nnssl.core.names import shown
from nnssl.core.own_files import TransferFile
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import DatasetFile
from nnssl.data.folders import dataset_argument
from nnssl.errors import UserError
from nnssl.finetuning.intensity import bridge_intensities
from nnssl.finetuning.pretrained import Pretrained, find_checkpoint, name_of, read_pretrained
from nnssl.finetuning.transfer import TransferReport
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration

RECORD = "nnssl_transfer.json"
_SPACING_TOLERANCE = 0.2
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
    orientations: Sequence[str | None] = (),
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
        orientations: of the target's training volumes, as far as known.

    Raises:
        UserError: no checkpoint or several, of another method, with intensities that cannot be bridged; a 2D or
            unknown configuration.
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
    bridge = bridge_intensities(plans, source.plans, (configuration, source.configuration))
    network = {"levels": source.levels, "head": head, "intensity": bridge.channels}
    resolved_block = {"checkpoint": name_of(path, results), "method": source.method, "levels": source.levels}
    advice = transfer_advice(plans, source)
    warnings = [*bridge.warnings, *geometry_warnings(plans, resolved, source, orientations, advice)]
    return Start({**block, **resolved_block, "network": network}, source, advice, warnings)


def refuse_bad_files(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> None:
    """Check what nnU-Net hands to a trainer before its own code makes folders of the names in it.

    Raises:
        UserError: plans or dataset.json do not fit their schemas, or the plans have no such configuration.
    """
    checked(plans, PlansFile, f"the plans {shown(plans.get('plans_name'))}", "restore them, or take others with -p")
    checked(dataset_json, DatasetFile, "dataset.json in nnUNet_preprocessed")
    if configuration not in plans["configurations"]:
        raise UserError(f"the plans {plans['plans_name']} have no configuration {shown(configuration)}; they have "
                        f"{', '.join(plans['configurations'])}")  # fmt: skip


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
        before, now = read_json(record, TransferFile)["checkpoint"], start.block["checkpoint"]
        if before != now:
            raise UserError(f"{fold_folder} holds a training that started from {before}, and this one would start from "
                            f"{now} and replace it; move that folder away, or train under plans of another name "
                            f"(nnssl_transfer makes them)")  # fmt: skip
    plans, others = model_folder / "plans.json", model_folder.glob("fold_*/checkpoint_*.pth")
    if plans.is_file() and any(file.parent != fold_folder for file in others):
        network = read_json(plans, PlansFile).get("nnssl", {}).get("network")
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
    source_id, target_id = (dataset_argument(str(p["dataset_name"])) for p in (source.plans, plans))
    return (f"run nnssl_transfer -s {source_id} -t {target_id} -m {source.method}, which makes plans with the "
            f"pretraining's network, spacing and intensities, and train with those")  # fmt: skip


def geometry_warnings(
    plans: dict[str, Any],
    resolved: dict[str, Any],
    source: Pretrained,
    orientations: Sequence[str | None],
    advice: str,
) -> list[str]:
    """Sentences on how the anatomy looks otherwise than in the pretraining: spacing, axis order, orientation."""
    warnings = []
    own, given = resolved["spacing"], resolve_configuration(source.plans, source.configuration)["spacing"]
    if any(abs(a / b - 1) > _SPACING_TOLERANCE for a, b in zip(own, given, strict=True)):
        warnings.append(f"the spacing of these plans, {_mm(own)}, differs from that of the pretraining, {_mm(given)}, "
                        f"by more than 20 % on an axis; {advice}")  # fmt: skip
    axes, source_axes = (p.get("transpose_forward", [0, 1, 2]) for p in (plans, source.plans))
    if axes != source_axes:
        warnings.append(f"these plans order the axes as {axes} (transpose_forward) and the pretraining as "
                        f"{source_axes}, so that the network sees the anatomy turned; {advice}")  # fmt: skip
    differing = sorted({o for o in orientations if o is not None and o != source.orientation})
    if source.orientation is not None and differing:
        warnings.append(f"volumes of this dataset are oriented {', '.join(differing)} and those of the pretraining "
                        f"{source.orientation}, and nnU-Net does not reorient; reorient the files of one of the "
                        f"datasets (SimpleITK.DICOMOrient(image, '{source.orientation}')) and preprocess them "
                        f"again")  # fmt: skip
    return warnings


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"

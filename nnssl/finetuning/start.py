"""What a training starts from: the checkpoint, the bridge to its intensities, and what the user should know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnssl.checkpoints.intensity import bridge_intensities
from nnssl.checkpoints.loading import TransferReport
from nnssl.checkpoints.pretrained import Pretrained, name_of, read_pretrained
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import TransferFile
from nnssl.core.plans_schema import PlansFile
from nnssl.finetuning.segmentation import UNET
from nnssl.finetuning.which_run import Head, Wanted, check_fits, find_checkpoint, image_warnings, transfer_advice
from nnssl.methods.registry import get_method
from nnssl.networks.build import network_entries, resolve_configuration

RECORD = "nnssl_transfer.json"


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
    """Resolve the checkpoint and all that the network needs of it.

    Args:
        wanted: the target, with or without the block `nnssl` in its plans, and its trainer.
        from_scratch: random weights, no checkpoint is looked for.
        results: nnUNet_results.

    Raises:
        UserError: no checkpoint or several, of another method, of another modality, with intensities that cannot be
            bridged; a 2D or unknown configuration.
    """
    plans, configuration, head = wanted.plans, wanted.configuration, wanted.head
    resolved = resolve_configuration(plans, configuration)
    refuse_second_stage(resolved, configuration, wanted.trainer)
    block = dict(plans.get("nnssl", {}))
    choice = None if from_scratch else find_checkpoint(wanted, results)
    if choice is None or choice.path is None:
        of_method = block.get("method") or wanted.method
        levels = block.get("levels") or (get_method(of_method).levels if of_method else "decoder")
        resolved_block = {"checkpoint": name_of(None, results), "method": of_method, "levels": levels}
        network = {"levels": levels, "head": head, "intensity": None}
        return Start({**block, **resolved_block, "network": network}, None, "", [])
    source = read_pretrained(choice.path)
    check_fits(source, wanted)
    bridge = bridge_intensities(plans, source.plans, (configuration, source.configuration), wanted.allows)
    advice = transfer_advice(plans, source)
    own_network, notes = _own_network(resolved, source, head, advice)
    network = {"levels": source.levels, "head": head, "intensity": bridge.channels, **own_network}
    resolved_block = {"checkpoint": name_of(choice.path, results), "method": source.method, "levels": source.levels}
    warnings = [*bridge.warnings, *image_warnings(wanted, source)]
    notes += [choice.note] if choice.note else []
    return Start({**block, **resolved_block, "network": network}, source, advice, warnings, notes)


def _own_network(
    resolved: dict[str, Any], source: Pretrained, head: Head, advice: str
) -> tuple[dict[str, Any], list[str]]:
    """The pretraining's network for a head of ours where it is not that of the target's plans, and what to say of it.

    Plans that agree keep the form in which trainings of earlier versions describe their network.
    """
    theirs = network_entries(resolve_configuration(source.plans, source.configuration))
    if head == UNET or theirs == network_entries(resolved):
        return {}, []
    return {"backbone": theirs}, [f"the backbone is the pretraining's own network, which is not that of these plans; "
                                  f"to have its spacing, patch and intensities too, {advice}"]  # fmt: skip


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

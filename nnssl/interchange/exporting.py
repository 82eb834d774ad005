"""`nnssl_export`: a pretraining as files for other programs and people, with a model card."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from nnssl.checkpoints.exported import ADAPTATION_PLAN, CONFIG, HEADS, WEIGHTS, needed_safetensors
from nnssl.checkpoints.files import FINAL, NNUNET_WEIGHTS, save_checkpoint, save_content
from nnssl.checkpoints.loading import first_of
from nnssl.checkpoints.origin import ORIGIN, origin_of
from nnssl.checkpoints.runs import Run, open_run
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, replace_file, replacing_folder, write_json
from nnssl.core.own_files import ExportedFile
from nnssl.data.folders import check_output_folder
from nnssl.features.model import model_of
from nnssl.interchange.adaptation_plan import exchanged, shared_once, warnings_of
from nnssl.interchange.facts import Facts, benchmark_of, citations_of, facts_of
from nnssl.interchange.licensing import choose_licence
from nnssl.interchange.model_card import model_card
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.weights import depending_on_classes, pretrained_network

Format = Literal["nnssl", "safetensors", "nnunet"]
FORMATS: tuple[Format, ...] = get_args(Format)
CARD, PICTURE, PLAN = "README.md", "progress.png", "adaptation_plan.json"
_WRITTEN = (CARD, CONFIG, FINAL, NNUNET_WEIGHTS, PICTURE, PLAN, WEIGHTS)
# Of a checkpoint: what an exported folder keeps beside the tensors. It names no case.
_KEPT = ("method", "levels", "config", "plans", "configuration", "dataset_json", "orientation", "step", "epoch")
_OF_DATASET = ("channel_names", "labels", "file_ending", "overwrite_image_reader_writer", "regions_class_order")

log = logging.getLogger("nnssl")


def export(
    model: str | Path,
    output: str | Path,
    format: Format = "nnssl",
    licence: str | None = None,
    benchmark: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the weights of a pretraining for other programs, with everything that they need, and a model card.

    Args:
        model: RUN, see `nnssl.checkpoints.runs.checkpoint_of`.
        output: folder to make, whole or not at all.
        format: `nnssl`: the checkpoint with adaptation plan that nnU-Net's fine-tuning from pretrained weights reads;
            `safetensors`: `model.safetensors` and `config.json`, as on model hubs, of any network; `nnunet`: for
            `nnUNetv2_train -pretrained_weights`.
        licence: identifier, such as apache-2.0; None for that of the weights that the run derives from, if any.
        benchmark: output folder of `nnssl_benchmark`, whose results the card shows.
        overwrite: replace an earlier export.

    Returns:
        The folder. `nnssl.load_pretrained` and RUN take it, in the formats `nnssl` and `safetensors`.

    Raises:
        UserError: there is no such run, its network or licence does not allow it, or the folder is not free.
    """
    folder = Path(output)
    if format not in FORMATS:
        raise UserError(f"-format takes {', '.join(FORMATS)}, not {format!r}")
    _check_output(folder, overwrite)
    run = open_run(model)
    if run.is_random:
        raise UserError(f"{model} has random weights, which nobody needs a copy of; give a RUN")
    if folder.resolve() in run.checkpoint.resolve().parents:
        raise UserError(f"{folder} holds {run.checkpoint}, which it would replace; give -o another folder")
    origin = origin_of(run.content)
    chosen = choose_licence(licence, origin, run.checkpoint)
    if chosen is None:
        log.warning("no licence is given, so that nobody else may use these weights; give one with -license, such as "
                    "-license apache-2.0")  # fmt: skip
    kept = _kept(run.content, {**(origin or {}), **({"licence": chosen} if chosen else {})})
    facts = facts_of(run, model_of(run), kept, chosen)
    if benchmark is not None:
        facts = replace(facts, benchmark=benchmark_of(Path(benchmark), run.checkpoint))
    with replacing_folder(folder) as temporary:
        limits = _WRITERS[format](temporary, run, kept, facts)
        if (picture := run.checkpoint.parent / PICTURE).is_file():
            shutil.copyfile(picture, temporary / PICTURE)
            facts = replace(facts, picture=PICTURE)
        write_json(temporary / CONFIG, facts.config(kept))
        (temporary / CARD).write_text(model_card(facts, limits, format, folder.name), encoding="utf-8")
    for limit in limits:
        log.warning(limit)
    log.info(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return folder


def _check_output(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless the folder is free, or holds an earlier export that may be replaced."""
    check_output_folder(folder)
    if folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"-o {folder} is a link, or the folder that you are in, and would be made anew; give -o a new "
                        f"folder")  # fmt: skip
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{folder} is not empty; give -o another folder, or --overwrite to replace an earlier export")
    fix = "--overwrite replaces nothing but what nnssl_export wrote; give -o another folder"
    read_json(folder / CONFIG, ExportedFile, fix)
    written = {*_WRITTEN, *(plans.name for plans in folder.glob("*From_*.json"))}
    if others := sorted({entry.name for entry in folder.iterdir()} - written):
        raise UserError(f"{folder} holds {first_of(others)} too, and {fix}")


def _kept(content: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """Entries of the checkpoint that others need, in plain types, without names of cases and paths of this machine."""
    kept = {key: content[key] for key in _KEPT if content.get(key) is not None}
    plans = {key: value for key, value in content["plans"].items() if key != "nnssl"}
    dataset = {key: value for key, value in content["dataset_json"].items() if key in _OF_DATASET}
    dataset.setdefault("channel_names", content["dataset_json"].get("modality"))  # the older key
    return {**kept, "plans": plans, "dataset_json": dataset} | ({ORIGIN: origin} if origin else {})


def _transferred(content: dict[str, Any]) -> dict[str, Tensor]:
    """The network, and the heads of a pixel encoder, with contiguous tensors; those with several names are shared."""
    parts: tuple[str, ...] = ("backbone.",)
    if issubclass(get_method(content["method"]), PixelMethod):
        parts = (*parts, HEADS)
    state = {name: tensor for name, tensor in content["method_state"].items() if name.startswith(parts)}
    once, aliases = shared_once(state)
    return {name: once[aliases.get(name, name)] for name in state}


def _write_exchanged(folder: Path, run: Run, kept: dict[str, Any], facts: Facts) -> list[str]:
    content = exchanged(kept, _transferred(run.content), citations_of(facts))
    save_content(content, folder / FINAL)
    write_json(folder / PLAN, content[ADAPTATION_PLAN])
    return warnings_of(content[ADAPTATION_PLAN])


def _write_safetensors(folder: Path, run: Run, kept: dict[str, Any], facts: Facts) -> list[str]:
    needed_safetensors()
    from safetensors.torch import save

    once, aliases = shared_once(_transferred(run.content))
    # `save_file` makes a file that nobody else may read
    replace_file(folder / WEIGHTS, save(once, {"format": "pt", **aliases}))
    return []


def _write_nnunet(folder: Path, run: Run, kept: dict[str, Any], facts: Facts) -> list[str]:
    _refuse_more_than_segmentation(kept)
    network, _ = pretrained_network(run.content, run.checkpoint)
    save_checkpoint({"network_weights": dict(network.state_dict())}, folder / NNUNET_WEIGHTS)
    write_json(folder / f"{facts.stock_plans}.json", _renamed(kept["plans"], facts.stock_plans))
    if facts.architecture.startswith("nnssl."):
        return [f"{facts.architecture.rpartition('.')[2]} is a network of this package, which must be installed where "
                f"nnU-Net trains"]  # fmt: skip
    return []


def _refuse_more_than_segmentation(kept: dict[str, Any]) -> None:
    """Raise UserError where layers that nnU-Net loads have other shapes for another number of classes."""
    if others := depending_on_classes(resolve_configuration(kept["plans"], kept["configuration"])):
        raise UserError(f"nnU-Net could load these weights for one number of classes only, on which {others[0]} "
                        f"depends; export them with -format nnssl or safetensors")  # fmt: skip


def _renamed(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Plans whose volumes have folders of their own: nnU-Net's stock plans have the same names in every dataset."""
    configurations = {
        key: {**value, "data_identifier": f"{name}_{key}"} if "data_identifier" in value else value
        for key, value in plans["configurations"].items()
    }
    return {**plans, "plans_name": name, "configurations": configurations}


_WRITERS: dict[Format, Callable[[Path, Run, dict[str, Any], Facts], list[str]]] = {
    "nnssl": _write_exchanged,
    "safetensors": _write_safetensors,
    "nnunet": _write_nnunet,
}

"""`nnssl.transfer`: plans and volumes of a labelled dataset that carry the spacing, intensities and network of a
pretraining, and say which pretraining it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.checkpoints.files import NNUNET_WEIGHTS
from nnssl.checkpoints.pretrained import RANDOM, Pretrained, name_of
from nnssl.checkpoints.runs import RunFilter, choose_pretraining, is_run, read_run, source_name
from nnssl.core.errors import UserError
from nnssl.core.names import check_name
from nnssl.data.dataset_run import DatasetRun
from nnssl.data.folders import dataset_id, dataset_name, explained_errors_of, require_folders
from nnssl.data.guard import ALLOWED, Images, names_of_channels, other_intensities, warn_of_images
from nnssl.data.next_lines import (
    ANY_TRAINER,
    STOCK_CONFIGURATION,
    STOCK_PLANS,
    Way,
    commands_of,
    first_fold,
    plan_lines,
    rendered,
    train_line,
    trainer_for,
)
from nnssl.data.planning import BLOCK, PlanRequest, Plans
from nnssl.data.pool import default_processes
from nnssl.data.raw import RawDataset
from nnssl.data.report import PreparedDataset, RunOptions, majority_orientation
from nnssl.networks.build import resolve_configuration

_STAGES = ("inherits_from", "previous_stage", "next_stage")  # other configurations, which are not transferred

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class TransferredPlans:
    """What `transfer` leaves.

    Args:
        prepared: the target with its plans and volumes.
        command: to type next: train from the pretraining, with a trainer of this package.
        stock_command: or this: start nnU-Net's own trainer from the pretrained weights; None where it could not.
        next: all lines that are printed as what to type next, in their order; these two are among them.
    """

    prepared: PreparedDataset
    command: str
    stock_command: str | None
    next: tuple[str, ...] = ()


def transfer(
    source: int | str | Path,
    target: int | str,
    method: str | None = None,
    configuration: str | None = None,
    plans: str | None = None,
    fold: str | None = None,
    num_processes: int | None = None,
    overwrite_plans: bool = False,
    overwrite_plans_name: str | None = None,
    overwrite_volumes: bool = False,
    allow_other_intensities: bool = False,
) -> TransferredPlans:
    """Plan and preprocess a labelled dataset as a finished pretraining was, so that its weights fit exactly.

    The target gets plans `<plans>From<source>_<method>` with the pretraining's spacing, intensities, network, patch,
    batch and axes, and its volumes in `<plans>From<source>_<configuration>`, which all methods share. The pretraining
    is read from its checkpoint: its raw and its preprocessed dataset may be gone. What is done already is kept.

    Args:
        source: dataset of the pretraining, number or name; or a RUN (`nnssl.checkpoints.runs.checkpoint_of`), also a
            model folder of nnU-Net, whose trained network then is the pretraining.
        target: labelled dataset, number or name.
        method: of the pretraining; `random` for the baseline with the same network (`random:METHOD` where methods
            differ in it); None if only one pretraining is finished.
        configuration: of the pretraining, where there are several; plans and fold likewise.
        plans: of the pretraining.
        fold: of the pretraining, "all" or a number.
        num_processes: for preprocessing; None for nnU-Net's number, at most one a core.
        overwrite_plans: replace plans of that name, and volumes that do not fit them.
        overwrite_plans_name: another name for the plans, with a data folder of their own.
        overwrite_volumes: prepare all volumes anew, those too that are done.
        allow_other_intensities: take a target of another modality (`nnssl.data.guard`); the plans say so, and let the
            training through.

    Returns:
        Where everything is, and the lines to type next, as `nnssl_transfer` prints them: all in `next`, the first one
        also as `command`. They are logged too.

    Raises:
        UserError: no such pretraining, or several; the target has no labels, or other channels; other plans of that
            name exist; or what `nnssl.plan_and_preprocess` raises.
    """
    raw, preprocessed, results = require_folders("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    if overwrite_plans_name is not None:
        check_name(overwrite_plans_name, "plans", "-overwrite_plans_name")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"-np {num_processes} leaves nobody to work; use -np 1 or more")
    wanted = RunFilter(method, plans, configuration, fold)
    target_name = dataset_name(target)
    if is_run(source):
        pretrained = read_run(str(source), wanted)
        name = str(pretrained.plans["dataset_name"])
    else:
        name = source_name(str(source), results)
        pretrained = choose_pretraining(results, name, target, wanted)
    options = RunOptions(raw, preprocessed, pretrained.configuration, num_processes or default_processes(), 1, 0,
                         clean=False, strict=False, show_progress=True,
                         overwrite_volumes=overwrite_volumes)  # fmt: skip
    run = DatasetRun(options, target_name)
    _check_labels(run.dataset)
    given = Images.of_pretraining(
        pretrained.plans, pretrained.configuration, pretrained.dataset_json, pretrained.orientation
    )
    own = Images(run.dataset.name, run.dataset.channel_names)
    warn_of_images(given, own, allow_other_intensities, by_scheme=True)
    base = f"{pretrained.plans['plans_name']}From{dataset_id(name)}"
    request = PlanRequest(
        plans_name=overwrite_plans_name or f"{base}_{RANDOM if wanted.is_random else pretrained.method}",
        overwrite=overwrite_plans,
    )
    block: dict[str, Any] = {
        "checkpoint": RANDOM if wanted.is_random else name_of(pretrained.path, results),
        "method": pretrained.method,
        "levels": pretrained.levels,
    }
    if other_intensities(given, own, by_scheme=True):
        block[ALLOWED] = True
    folder = f"{overwrite_plans_name or base}_{pretrained.configuration}"
    plans_of_target = plans_of(pretrained, request.name(), folder, block, len(run.dataset.channel_names))
    with explained_errors_of(preprocessed):
        run.adopt_plans(plans_of_target, request)
        fingerprint = run.fingerprint()
        prepared = run.volumes.prepare()
    warn_of_images(given, _geometry(run, fingerprint))
    return _announce(pretrained, prepared, wanted.is_random, len(run.dataset.channel_names))


def plans_of(source: Pretrained, name: str, folder: str, block: dict[str, Any], num_channels: int) -> Plans:
    """Plans `name` of a pretraining for a dataset of `num_channels`, with its volumes in `folder`.

    Only the pretraining's configuration is kept. The normalisation of one channel serves all channels.
    """
    plans: Plans = json.loads(json.dumps(source.plans))
    resolved = resolve_configuration(plans, source.configuration)
    mine = {key: value for key, value in resolved.items() if key not in _STAGES}
    mine["data_identifier"] = folder
    if len(mine["normalization_schemes"]) == 1:
        for key in ("normalization_schemes", "use_mask_for_norm"):
            mine[key] = mine[key] * num_channels
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        plans["foreground_intensity_properties_per_channel"] = {str(c): properties for c in range(num_channels)}
    return {**plans, "plans_name": name, "configurations": {source.configuration: mine}, BLOCK: block}


def _check_labels(target: RawDataset) -> None:
    """Raise UserError unless nnU-Net could train on the target."""
    if len(target.dataset_json["labels"]) < 2 or (target.cases and not target.labelled):
        raise UserError(f"{target.name} has no labels to train with; put them into {target.folder / 'labelsTr'} and "
                        f"name them in its dataset.json, or choose a labelled dataset with -t")  # fmt: skip


def _geometry(run: DatasetRun, fingerprint: Mapping[str, Any]) -> Images:
    """Orientation and voxels of the target, as most of its volumes are."""
    name, voxels = f"most volumes of {run.dataset.name}", {}
    if fingerprint:
        voxels[name] = np.median(fingerprint["spacings"], axis=0)[run.plans["transpose_forward"]].tolist()
    oriented = majority_orientation(run.home, run.plans["plans_name"])
    return Images(run.dataset.name, orientations={name: oriented}, voxels=voxels)


def _announce(source: Pretrained, prepared: PreparedDataset, is_random: bool, num_channels: int) -> TransferredPlans:
    name, home = prepared.name, prepared.folder.parent
    fold, plans = first_fold(len(prepared.cases), home), prepared.plans_name
    trainer = ANY_TRAINER if is_random else trainer_for(source.made_by)
    command = train_line(name, prepared.configuration, fold, trainer=trainer, plans=plans)
    ways, stock = [Way((command,), f"train from the {'random' if is_random else 'pretrained'} weights")], None
    weights = source.path.with_name(NNUNET_WEIGHTS)
    same_channels = num_channels == len(names_of_channels(source.dataset_json))
    if not is_random and same_channels and weights.is_file():
        stock = train_line(name, prepared.configuration, fold, "-pretrained_weights", weights, plans=plans)
        ways.append(Way((stock,), "fine-tune the whole network with nnU-Net's own trainer"))
    if not is_random and not (home / f"{STOCK_PLANS}.json").is_file():
        train = train_line(name, STOCK_CONFIGURATION, fold, trainer=trainer_for(source.made_by, any_plans=True))
        ways.append(Way((*plan_lines(name), train), f"train without -p, on nnU-Net's own plans, which {name} lacks"))
    log.info(_advice(source, is_random))
    log.info(rendered(ways))
    return TransferredPlans(prepared, command, stock, commands_of(ways))


def _advice(source: Pretrained, is_random: bool) -> str:
    """Which trainer and rate suit the plans' whole network."""
    starts = "the pretrained encoder and a fresh decoder"
    if is_random:
        starts = "random weights"
    elif source.levels == "decoder":
        starts = "the pretrained encoder and decoder"
    return (f"-tr nnUNetTrainer_SSLUNetFinetune trains the plans' whole network from {starts}, with AdamW at 1e-3 in "
            f"fewer than 1,000 steps and at 3e-4 in more; nnUNetTrainer_SSLUNetScratch is nnU-Net's own recipe from "
            f"random weights, to compare at the same number of steps")  # fmt: skip

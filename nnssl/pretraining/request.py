"""What a pretraining is asked, and how that becomes a run: everything is checked and resolved once, here."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.files import FINAL
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.distributed import number_of_processes, started_by_torchrun
from nnssl.core.errors import UserError
from nnssl.core.names import check_name
from nnssl.data.inventory import named
from nnssl.data.loader import Aligner, RelativePosition, number_of_workers
from nnssl.data.plan_and_preprocess import PreparedDatasets, prepare_datasets
from nnssl.data.records import read_withdrawn
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.options import MEMORY_OPTIONS, from_plain, new_options, override, to_plain
from nnssl.methods.registry import IMPORTED, get_method, method_names
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.alignment import choose_aligner
from nnssl.pretraining.folder import Claim, Stored, check_output, load_resumed, run_folder
from nnssl.pretraining.held_out import hold_out
from nnssl.pretraining.optimisation import build_optimiser
from nnssl.pretraining.probe_data import ProbeData, check_probe, prepare_probe
from nnssl.pretraining.reporting import check_trackers
from nnssl.pretraining.setup import Setup, case_labels, resolve_sizes
from nnssl.pretraining.weights import check_state, check_weights

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Request:
    """The arguments of `nnssl.pretrain`, see there. In this order: `prepare`, `folder`, `resolve`."""

    dataset_ids: Sequence[int | str]
    method: str
    configuration: str
    plans: str
    fold: str
    device: str
    num_gpus: int
    continue_run: bool
    overwrite: bool
    options: Sequence[str]
    pretrained: str | Path | None
    num_processes: int | None
    alignment: str | Path | None
    probe: int | str | None
    probe_every: int | None
    allow_other_intensities: bool

    @cached_property
    def method_class(self) -> type[Method]:
        """Raises UserError where there is no such method."""
        return get_method(self.method)

    def check(self) -> None:
        """Refuse what can be refused before hours of preprocessing.

        Raises:
            UserError: any mistake that can be seen without plans and volumes.
        """
        if self.method == IMPORTED:
            raise UserError(
                f"{IMPORTED} is no method to pretrain with but what nnssl_import leaves; choose one of: "
                f"{', '.join(method_names())}, and start it from imported weights with -pretrained RUN"
            )
        override(self.method_class.config_class(), self.options)
        check_name(self.fold, "fold", "-f")
        check_name(self.configuration, "configuration", "-c")
        if self.pretrained and self.continue_run:
            raise UserError("--c continues a run with its own weights and -pretrained starts a new one; give one of "
                            "them")  # fmt: skip
        if self.alignment and not self.method_class.pairs_volumes:
            raise UserError(f"-alignment is for methods that pair volumes, and {self.method} does not; leave it out")
        if self.probe is None and self.probe_every is not None:
            raise UserError("-probe_every says how often to probe; add the labelled dataset, as in -probe 17")
        if self.probe is not None and self.dataset_ids:
            check_probe(self.probe, self.dataset_ids[0], self.probe_every, self.allow_other_intensities)

    def prepare(self) -> PreparedDatasets:
        """Plan and preprocess the datasets where that is missing; raises as `check` and `prepare_datasets`."""
        self.check()
        return prepare_datasets(self.dataset_ids, self.plans, self.configuration, self.num_processes,
                                not started_by_torchrun(), self.allow_other_intensities)  # fmt: skip

    def folder(self, prepared: PreparedDatasets) -> Path:
        """The run's folder."""
        plans = prepared.plans["plans_name"]
        return run_folder(prepared.results, prepared.folders[0].name, self.method, plans, self.configuration, self.fold)

    def resolve(self, prepared: PreparedDatasets, folder: Path, claim: Claim | None) -> Setup:
        """Resolve and check the whole run; of a finished one, only that it is the one that is asked for.

        Args:
            prepared: from `prepare`.
            folder: of the run.
            claim: the right to write there; None where nothing will be written.

        Raises:
            UserError: the folder holds another run; options, fold, weights, encoder or probe do not suit the data; a
                checkpoint does not fit on the disk.
        """
        latest = check_output(folder, self.continue_run, self.overwrite)
        resume = load_resumed(latest) if latest else None
        if self.continue_run and resume is None:
            log.warning(f"there is no run to continue in {folder}: a new one starts")
        resolved = resolve_configuration(prepared.plans, self.configuration)
        config = self._config(resume)
        train, val = hold_out(prepared.folders, self.fold, config.seed)
        setup = Setup(
            method=self.method,
            config=resolve_sizes(config, resolved, number_of_processes(self.num_gpus)),
            plans=prepared.plans,
            dataset_json=prepared.dataset_json,
            fingerprint=prepared.fingerprint,
            configuration=self.configuration,
            resolved=resolved,
            fold=self.fold,
            train=train,
            val=val,
            folder=folder,
            resume=resume,
            pretrained=None if self.pretrained in (None, RANDOM) else Stored(checkpoint_of(str(self.pretrained))),
            orientation=prepared.orientation,
            aligner=self._aligner(config, prepared),
            probe=self._probe(prepared),
            claim=claim,
        )
        if resume is not None:
            check_same_run(setup, resume)
        if latest is None or latest.name != FINAL:
            self._check_start(setup)
        return setup

    def _config(self, resume: Stored | None) -> MethodConfig:
        """Hyper-parameters: those of the run that goes on, of which only what saves memory may change on the way."""
        config_class = self.method_class.config_class
        if resume is None:
            return override(config_class(), self.options)
        stored = from_plain(config_class, resume.content["config"])
        asked = override(stored, self.options)
        before, now = to_plain(stored), to_plain(asked)
        changed = [f"{k} ({before[k]} -> {now[k]})" for k in before if before[k] != now[k] and k not in MEMORY_OPTIONS]
        if changed:
            raise UserError(f"--c continues with the options the run began with, but these differ: "
                            f"{', '.join(changed)}; leave them out, or start anew with --overwrite")  # fmt: skip
        return asked

    def _aligner(self, config: MethodConfig, prepared: PreparedDatasets) -> Aligner:
        if not self.method_class.pairs_volumes:
            return RelativePosition()
        names = list(dict.fromkeys(folder.name for folder in prepared.folders))
        return choose_aligner(self.alignment, config, names, prepared.results)

    def _probe(self, prepared: PreparedDatasets) -> ProbeData | None:
        if self.probe is None:
            return None
        return prepare_probe(self.probe, prepared, self.configuration, self.probe_every, self.num_processes,
                             not started_by_torchrun(), self.allow_other_intensities)  # fmt: skip

    def _check_start(self, setup: Setup) -> None:
        """Refuse what can be refused before the folder of an earlier run is touched, then warn.

        The network is built without memory: it must take the patch and the weights to start from, and its checkpoints
        must fit on the disk.
        """
        number_of_workers()
        check_trackers()
        with torch.device("meta"):
            method = setup.build_method()
        build_optimiser(setup.config, method.parameters())
        if setup.resume:
            check_state(method, setup.resume.content["method_state"], setup.resume.path)
        if setup.pretrained:
            path = setup.pretrained.path
            if self.overwrite and path.resolve().is_relative_to(setup.folder.resolve()):
                raise UserError(f"--overwrite would delete {path}, the weights to start from; move the file out of the "
                                f"run's folder first")  # fmt: skip
            check_weights(method, setup, self.allow_other_intensities)
        _check_space(setup, sum(p.numel() for p in method.parameters()))
        if setup.resume and (new := new_options(setup.config, setup.resume.content["config"])):
            log.warning(f"the version that began this run did not have all options, and it goes on with "
                        f"{' '.join(new)}; if that is not what it began with, start anew with --overwrite")  # fmt: skip
        distinct = self.method_class.volumes_per_step(setup.config)
        if len(setup.train) < distinct:
            log.warning(f"a step takes {distinct} volumes but there are {len(setup.train)}: some are drawn more than "
                        f"once")  # fmt: skip
        if self.method_class.pairs_volumes and isinstance(setup.aligner, RelativePosition):
            log.warning("the volumes are paired by the relative position in the body: no pixel encoder is given "
                        "(-alignment), and no finished pretraining of these datasets is one (lapn or sam)")  # fmt: skip


def _check_space(setup: Setup, parameters: int) -> None:
    parent = next(folder for folder in (setup.folder, *setup.folder.parents) if folder.is_dir())
    # weights and two moments in float32; the latest and the final checkpoint, with a probe the best one too, and one of
    # them while it is replaced
    copies = 3 + (setup.probe is not None)
    needed, free = parameters * 12 * copies, shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(f"the checkpoints need {needed / 2**30:.1f} GiB in {parent}, but {free / 2**30:.1f} GiB are "
                        f"free; make room, or set nnUNet_results to another disk")  # fmt: skip


def check_same_run(setup: Setup, resume: Stored) -> None:
    """Refuse to continue a run with other plans, volumes, pairs or probe than it began with.

    Raises:
        UserError: naming what differs.
    """
    checkpoint = resume.content
    if checkpoint["plans"] != setup.plans:
        raise UserError(f"the plans {setup.plans['plans_name']} have changed since {resume.path} was written; start "
                        f"anew with --overwrite")  # fmt: skip
    if checkpoint["train_cases"] != case_labels(setup.train) or checkpoint["val_cases"] != case_labels(setup.val):
        raise UserError(_other_volumes(setup, resume))
    before = checkpoint.get("aligner", RelativePosition().identity)
    if setup.method_class.pairs_volumes and before != setup.aligner.identity:
        asked = before if before == RelativePosition().identity else "CHECKPOINT"
        raise UserError(f"this run began with volumes paired by {before} and would go on with "
                        f"{setup.aligner.identity}; continue it with the same -alignment {asked}, or start anew with "
                        f"--overwrite")  # fmt: skip
    _check_same_probe(setup, checkpoint)


def _other_volumes(setup: Setup, resume: Stored) -> str:
    """Why a run on other volumes cannot go on, and what to do."""
    before = {*resume.content["train_cases"], *resume.content["val_cases"]}
    folders = {*setup.train.folders, *setup.val.folders}
    withdrawn = {f"{f.name}/{case}" for f in folders for case in read_withdrawn(f.images.parent)} & before
    if not withdrawn:
        return (f"the preprocessed volumes are not those that {resume.path} was trained on; restore them, or start "
                f"anew with --overwrite")  # fmt: skip
    return (f"{named(withdrawn)} are gone from nnUNet_raw and are no longer used, so this run, which began with them, "
            f"cannot go on; start anew with --overwrite, or from its weights: copy {resume.path} elsewhere and add "
            f"--overwrite -pretrained COPY")  # fmt: skip


def _check_same_probe(setup: Setup, checkpoint: dict[str, Any]) -> None:
    state = checkpoint.get("probe_state")
    before, now = state and state["identity"], setup.probe and setup.probe.identity
    if before == now:
        return
    if before and now and before["dataset"] == now["dataset"]:
        raise UserError(f"the cases, the labels or -probe_every of the probe on {now['dataset']} are not those that "
                        f"this run began with; restore them, or start anew with --overwrite")  # fmt: skip
    texts = [f"with -probe {probe['dataset']}" if probe else "without -probe" for probe in (before, now)]
    raise UserError(f"this run began {texts[0]} and would go on {texts[1]}; continue it {texts[0]}, or start anew with "
                    f"--overwrite")  # fmt: skip

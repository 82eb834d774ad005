"""What a pretraining is asked, and how that becomes a run: everything is checked and resolved once, here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.checkpoints.pretrained import RANDOM
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.distributed import check_device, number_of_processes, started_by_torchrun
from nnssl.core.errors import UserError
from nnssl.core.names import check_name
from nnssl.data.loader import Aligner, RelativePosition
from nnssl.data.prepared import PreparedDatasets, prepare_datasets
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.options import from_plain, override, to_plain
from nnssl.methods.registry import get_method
from nnssl.pretraining.alignment import choose_aligner
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.probe_prepare import check_probe, prepare_probe
from nnssl.pretraining.run_lock import Claim
from nnssl.pretraining.setup import Setup, check_output, hold_out, load_resumed, resolve_sizes, run_folder

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Request:
    """The arguments of `nnssl.pretrain`, see there."""

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

    @property
    def method_class(self) -> type[Method]:
        """Raises UserError where there is no such method."""
        return get_method(self.method)

    @property
    def may_preprocess(self) -> bool:
        """Not where several processes would do it at once."""
        return not started_by_torchrun()

    def check(self) -> None:
        """Refuse what can be refused before hours of preprocessing.

        Raises:
            UserError: any mistake that can be seen without plans and volumes.
        """
        override(self.method_class.config_class(), self.options)
        check_device(self.device, self.num_gpus)
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
        """Plan and preprocess the datasets where that is missing; raises as `prepare_datasets`."""
        return prepare_datasets(self.dataset_ids, self.plans, self.configuration, self.num_processes,
                                self.may_preprocess, self.allow_other_intensities)  # fmt: skip

    def folder(self, prepared: PreparedDatasets) -> Path:
        """The run's folder."""
        plans = prepared.plans["plans_name"]
        return run_folder(prepared.results, prepared.folders[0].name, self.method, plans, self.configuration, self.fold)

    def resolve(
        self, prepared: PreparedDatasets, folder: Path, claim: Claim | None
    ) -> tuple[Setup, dict[str, Any] | None]:
        """The run that is asked for, and the checkpoint that it goes on from.

        Args:
            prepared: from `prepare`.
            folder: of the run.
            claim: the right to write there; None where nothing is to be written.

        Raises:
            UserError: the folder holds another run; options, fold, weights, encoder or probe do not suit the data.
        """
        resume = check_output(folder, self.continue_run, self.overwrite)
        checkpoint = load_resumed(resume) if resume else None
        if self.continue_run and not checkpoint:
            log.warning(f"there is no run to continue in {folder}: a new one starts")
        config = resolve_sizes(
            self._config(checkpoint), prepared.plans, self.configuration, number_of_processes(self.num_gpus)
        )
        train, val = hold_out(prepared.folders, self.fold, config.seed)
        setup = Setup(
            method=self.method,
            config=config,
            plans=prepared.plans,
            dataset_json=prepared.dataset_json,
            fingerprint=prepared.fingerprint,
            configuration=self.configuration,
            fold=self.fold,
            train=train,
            val=val,
            folder=folder,
            resume=resume,
            pretrained=None if self.pretrained in (None, RANDOM) else checkpoint_of(str(self.pretrained)),
            orientation=prepared.orientation,
            aligner=self._aligner(config, prepared),
            probe=self._probe(prepared),
            claim=claim,
        )
        return setup, checkpoint

    def _config(self, checkpoint: dict[str, Any] | None) -> MethodConfig:
        """Hyper-parameters: those of the run that goes on, which nobody may change on the way."""
        config_class = self.method_class.config_class
        if checkpoint is None:
            return override(config_class(), self.options)
        stored = from_plain(config_class, checkpoint["config"])
        before, now = to_plain(stored), to_plain(override(stored, self.options))
        changed = [f"{k} ({before[k]} -> {now[k]})" for k in before if before[k] != now[k]]
        if changed:
            raise UserError(f"--c continues with the options the run began with, but these differ: "
                            f"{', '.join(changed)}; leave them out, or start anew with --overwrite")  # fmt: skip
        return stored

    def _aligner(self, config: MethodConfig, prepared: PreparedDatasets) -> Aligner:
        if not self.method_class.pairs_volumes:
            return RelativePosition()
        names = list(dict.fromkeys(folder.name for folder in prepared.folders))
        return choose_aligner(self.alignment, config, names, prepared.results)

    def _probe(self, prepared: PreparedDatasets) -> ProbeData | None:
        if self.probe is None:
            return None
        return prepare_probe(self.probe, prepared, self.configuration, self.probe_every, self.num_processes,
                             self.may_preprocess, self.allow_other_intensities)  # fmt: skip

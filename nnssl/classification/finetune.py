"""Fine-tuning of every fold by the pretraining's loop, then predictions of its test cases."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nnssl.checkpoints.files import BEST, FINAL, LATEST, load_checkpoint
from nnssl.checkpoints.pretrained import RANDOM, Pretrained
from nnssl.classification.labels import Target
from nnssl.classification.method import ClassificationConfig
from nnssl.classification.model import BACKBONE, MODEL, Network, load_classifier, save_classifier
from nnssl.classification.results import Predictions
from nnssl.classification.setup import ClassificationSetup, head_of, levels_of, patch_of, scaled, whole_patch
from nnssl.classification.splits import Fold, split_off
from nnssl.classification.volumes import Prepared
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import RunFile
from nnssl.core.pretended_backward import TorchTooOld
from nnssl.core.system import memory_limit
from nnssl.methods.options import MEMORY_OPTIONS, from_plain, override, to_plain
from nnssl.networks.build import backbone_of, build_backbone, resolve_configuration
from nnssl.networks.pyramid import format_size
from nnssl.pretraining.folder import CONFIG, Claim, Stored, check_output, held, load_resumed, open_folder
from nnssl.pretraining.launch import launch
from nnssl.pretraining.memory import card_gib, peak_gib
from nnssl.pretraining.request import check_same_run
from nnssl.pretraining.run_log import open_run_log, run_log

METHOD = "classification"
_HELD_OUT = 0.2  # of a fold's training cases: they tell when to stop, and the test cases choose nothing
_CARD, _HOST = 0.9, 0.5  # of the memory for tensors of a step
_WARM_UP = 0.2  # of the steps
_FLAG = "-set"  # of the options
_LABELS = "labels"  # entry of `config.json`

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Job:
    """What all folds have in common.

    Args:
        folder: with a folder for each fold.
        target: to learn.
        prepared: its volumes; None before they are made.
        source: as of `ClassificationSetup`.
        start: name of the weights.
        options: `key=value`.
        seed: of weights and crops.
        device: to train on.
        memory_gib: that a step may take; None: by the machine.
        continue_run: go on with what is there.
        overwrite: replace it.
    """

    folder: Path
    target: Target
    prepared: Prepared | None
    source: Pretrained | None
    start: str
    options: Sequence[str]
    seed: int
    device: str
    memory_gib: float | None
    continue_run: bool
    overwrite: bool

    @property
    def volumes(self) -> Prepared:
        """The preprocessed cases."""
        assert self.prepared is not None
        return self.prepared

    def home(self, fold: Fold) -> Path:
        """Folder of a fold."""
        return self.folder / f"fold_{fold.number}"

    def check(self, folds: Sequence[Fold]) -> None:
        """Refuse what can be refused before the first fold; raises UserError."""
        override(ClassificationConfig(), self.options, _FLAG)
        for fold in folds:
            check_output(self.home(fold), self.continue_run, self.overwrite)
            if self.continue_run and not self._knows(fold):
                raise UserError(f"the labels or the folds have changed since {self.home(fold)} was begun; restore "
                                f"them, or start anew with -f {fold.number} --overwrite")  # fmt: skip

    def _fingerprint(self, fold: Fold) -> str:
        """Of what a fold learns from, and of the cases that it may be tested on."""
        values = [self.target.classes[int(value)] if self.target.classes else value
                  for value in self.target.of(fold.train).tolist()]  # fmt: skip
        known = [fold.train, values, self.target.groups_of(fold.train), fold.test]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()

    def _knows(self, fold: Fold) -> bool:
        """Whether a fold's folder, if there is one, was begun with these labels and folds."""
        file = self.home(fold) / CONFIG
        if not file.is_file():
            return True
        content = read_json(file, RunFile, "restore it, or start anew with --overwrite")
        return bool(content.get(_LABELS) in (None, self._fingerprint(fold)))

    def train(self, fold: Fold) -> None:
        """Train a fold, or go on with it; its `model.pth` is that of the epoch with the lowest held-out loss.

        Raises:
            Interrupted: after SIGTERM or SIGUSR1; everything is saved.
            UserError: the options do not suit the network or the run that goes on.
        """
        home = self.home(fold)
        with held(home, self.continue_run, self.overwrite) as claim, run_log():
            latest = check_output(home, self.continue_run, self.overwrite)
            if latest is None or latest.name != FINAL:
                setup = self._setup(fold, load_resumed(latest) if latest else None, claim)
                described = {**setup.described(self.device), "start": self.start, "target": self.target.name,
                             _LABELS: self._fingerprint(fold)}  # fmt: skip
                (home / MODEL).unlink(missing_ok=True)  # of a run whose removal was interrupted
                open_folder(home, self.overwrite, described, setup.plans, setup.dataset_json)
                open_run_log(home)
                log.info(f"fold {fold.number}: {len(setup.train)} cases to learn from, {len(setup.val)} to tell when "
                         f"to stop, {len(fold.test)} to test")  # fmt: skip
                if setup.resume is None and (report := setup.build()[1]) is not None:
                    for line in report.lines():
                        log.info(line)
                launch(setup, self.device, 1)
            if not (home / MODEL).is_file():
                self._keep_best(home)

    def _setup(self, fold: Fold, resume: Stored | None, claim: Claim | None) -> ClassificationSetup:
        train, held_out = split_off(self.target, fold.train, _HELD_OUT, self.seed)
        plans, configuration = self.volumes.plans, self.volumes.configuration
        levels = levels_of(self.source, plans, configuration)
        train_cases, held_out_cases = self.volumes.cases(train), self.volumes.cases(held_out)
        values = scaled(self.target, train_cases.names.tolist(), held_out_cases.names.tolist())
        setup = ClassificationSetup(
            METHOD, self._config(resume), plans, self.volumes.dataset_json, {}, configuration, str(fold.number),
            train_cases, held_out_cases, self.home(fold), resume, orientation=self.volumes.orientation, claim=claim,
            resolved=resolve_configuration(plans, configuration), values=values, source=self.source, levels=levels,
            device=self.device,
        )  # fmt: skip
        if resume is not None:
            check_same_run(setup, resume)
            return setup
        return self._sized(setup)

    def _config(self, resume: Stored | None) -> ClassificationConfig:
        if resume is None:
            return override(replace(ClassificationConfig(), seed=self.seed), self.options, _FLAG)
        stored = from_plain(ClassificationConfig, resume.content["config"])
        asked = override(stored, self.options, _FLAG)
        before, now = to_plain(stored), to_plain(asked)
        kept = [key for key in before if key not in MEMORY_OPTIONS]
        if changed := [f"{key} ({before[key]} -> {now[key]})" for key in kept if before[key] != now[key]]:
            raise UserError(f"--c continues with the options the run began with, but these differ: "
                            f"{', '.join(changed)}; leave them out, or start anew with --overwrite")  # fmt: skip
        return asked

    def _sized(self, setup: ClassificationSetup) -> ClassificationSetup:
        """With sizes and numbers of steps where the options name none: each case once an epoch."""
        given = {option.partition("=")[0] for option in self.options}
        config = replace(setup.config, batch_size=setup.config.batch_size or int(setup.resolved["batch_size"]))
        if "steps_per_epoch" not in given:
            config = replace(config, steps_per_epoch=-(-len(setup.train) // config.volumes))
        if "val_steps_per_epoch" not in given:
            config = replace(config, val_steps_per_epoch=-(-len(setup.val) // config.volumes))
        if "warmup_steps" not in given:
            config = replace(config, warmup_steps=round(_WARM_UP * config.num_epochs * config.steps_per_epoch))
        sized = replace(setup, config=config)
        return sized if config.patch_size is not None else self._with_patch(sized)

    def _with_patch(self, setup: ClassificationSetup) -> ClassificationSetup:
        """Whole volumes where a step of them fits into the memory, else crops of the pretraining's patch size."""
        with torch.device("meta"):
            backbone = backbone_of(setup.resolved, setup.levels)
        patch = patch_of(self.source, setup.resolved)
        crops = replace(setup, config=replace(setup.config, patch_size=patch))
        whole = whole_patch(backbone, self.volumes.largest([*setup.train.names, *setup.val.names]))
        if whole is None:
            return crops
        wide = replace(setup, config=replace(setup.config, patch_size=whole))
        try:
            bound, needed = self._bound(), self._needed(wide)
        except TorchTooOld as reason:
            log.info(f"crops of {format_size(patch)} voxels, since {reason}")
            return crops
        chosen = wide if needed <= bound else crops
        log.info(f"whole volumes of {format_size(whole)} voxels need about {needed:.1f} GiB a step, {bound:.1f} are "
                 f"allowed: {'whole volumes' if chosen is wide else f'crops of {format_size(patch)}'}")  # fmt: skip
        return chosen

    def _bound(self) -> float:
        """GiB that the tensors of a step may take."""
        if self.memory_gib is not None:
            return self.memory_gib
        card = card_gib() if self.device == "cuda" else None
        return _HOST * memory_limit() / 2**30 if card is None else _CARD * card

    def _needed(self, setup: ClassificationSetup) -> float:
        precision = setup.config.precision if self.device == "cuda" else "float32"
        wanted = replace(setup, source=None, config=replace(setup.config, precision=precision))
        return peak_gib(wanted, wanted.build()[0])

    def _keep_best(self, home: Path) -> None:
        """Write the classifier, and remove the checkpoints that only a run under way needs."""
        best = home / BEST if (home / BEST).is_file() else home / FINAL
        content = load_checkpoint(best)
        state = content["method_state"]
        config = from_plain(ClassificationConfig, content["config"])
        levels = levels_of(self.source, content["plans"], content["configuration"])
        backbone = {name[len(BACKBONE) :]: value for name, value in state.items() if name.startswith(BACKBONE)}
        with torch.device("meta"):
            last = len(build_backbone(content["plans"], content["configuration"], levels).channels) - 1
        network = Network(content, backbone, levels, 0, last, config.patch)
        train = [label.split("/", 1)[1] for label in content["train_cases"]]
        head = head_of(state, self.target, train)
        save_classifier(home / MODEL, network, head, self.target, "finetuned", self.start)
        for name in (LATEST, BEST):
            (home / name).unlink(missing_ok=True)

    def with_random_weights(self) -> Job | None:
        """The fine-tuning of the same network from random weights, if it is beside this one."""
        old, new = f"__{self.start}_finetuned__", f"__{RANDOM}_{self.start}_finetuned__"
        beside = self.folder.with_name(self.folder.name.replace(old, new))
        return replace(self, folder=beside) if beside != self.folder and beside.is_dir() else None

    def finished(self, folds: Sequence[Fold]) -> list[Fold]:
        """Folds that have a classifier; one that has learned from other labels, or other cases, is left out."""
        found = [fold for fold in folds if (self.home(fold) / MODEL).is_file()]
        for fold in found:
            if not self._knows(fold):
                log.warning(f"{self.home(fold)} is left out of the results: the labels or the folds have changed since "
                            f"it was trained; train it anew with -f {fold.number} --overwrite")  # fmt: skip
        return [fold for fold in found if self._knows(fold)]

    def predict(self, fold: Fold) -> Predictions:
        """Predictions of a fold's test cases by its `model.pth`."""
        classifier = load_classifier(self.home(fold) / MODEL, self.device)
        found: Predictions = {}
        for case in fold.test:
            volume = self.volumes.open(case)
            start, stop = np.zeros(3, dtype=np.int64), volume.size
            values, body = volume.read(start, stop), volume.read_body(start, stop)
            found[case] = classifier.predict(values, body, self.device)
        return found

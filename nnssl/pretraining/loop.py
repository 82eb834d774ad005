"""The training loop, once for all methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from nnssl.checkpoints.files import BEST, FINAL, LATEST, package_versions, save_checkpoint
from nnssl.checkpoints.origin import derived, origin_of
from nnssl.core.distributed import barrier, is_main, rank, world_size
from nnssl.core.signals import Interrupted, StopSignal
from nnssl.data.loader import (
    LoadedBatch,
    SampleDataset,
    Stream,
    make_loader,
    next_batch,
    positions_of_rank,
    stop_workers,
)
from nnssl.methods.base import Batch, Method, StepOutput, to_device
from nnssl.methods.options import to_plain
from nnssl.networks.pimpic_unet import weights_like_maps
from nnssl.networks.sync_batch_norm import synchronise_batch_norm
from nnssl.pretraining.life_signs import LifeSigns, Pace, announce
from nnssl.pretraining.meters import Meters
from nnssl.pretraining.optimisation import (
    build_optimiser,
    choose_precision,
    compile_backbones,
    learning_rate,
    load_optimiser,
)
from nnssl.pretraining.pictures import draw_reconstruction, draw_views
from nnssl.pretraining.probe import OnlineProbe
from nnssl.pretraining.reporting import Reporter
from nnssl.pretraining.setup import Setup, case_labels
from nnssl.pretraining.stopping import Stopping
from nnssl.pretraining.tf32 import exact_products, use_tf32
from nnssl.pretraining.weights import load_weights


class Pretraining:
    """One run in one process: build or restore, then `run` to the end, an interruption or an error."""

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.setup, self.config, self.device = setup, setup.config, device
        torch.manual_seed(self.config.seed)  # the initial weights are the same in every process
        self.method: Method = setup.build_method().to(device)
        if world_size() > 1:
            synchronise_batch_norm(self.method)  # in place
        self.optimiser = build_optimiser(self.config, self.method.parameters())
        self.precision = choose_precision(self.config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.step, self.epoch = 0, 0  # finished steps and epochs
        self.signal = StopSignal()
        self.probe = OnlineProbe(setup, self.method, device, self.precision) if setup.probe and is_main() else None
        self.meters = Meters(setup, device, self.probe)
        start = setup.resume or setup.pretrained
        self.origin = derived(origin_of(start.content)) if start else {}
        self.stopping = Stopping(setup.patience)
        if setup.resume:
            self._restore(setup.resume.content)
        elif setup.pretrained:
            load_weights(self.method, setup.pretrained)
        if start:
            start.forget()
        self.first_step = self.step  # of this process
        self.reporter = Reporter(setup, self.epoch)
        pace = Pace(self.config, self._val_steps(), self.reporter.rows(device) if setup.resume and is_main() else ())
        self.life = LifeSigns(self.config, pace, self.meters.cost, self.meters.watch, device)
        compile_backbones(self.method)
        self.tf32 = use_tf32(self.method, device, self.precision)
        self.model: nn.Module = self._distribute()

    def run(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: after SIGTERM or SIGUSR1; the checkpoint is written.
            UserError: the loss is not finite, a volume cannot be read, or another run has taken the folder.
        """
        setup = self.setup
        dataset = SampleDataset(type(self.method), self.config, setup.train, setup.val, setup.aligner)
        positions = positions_of_rank(self.config.volumes, rank(), world_size())
        loader = make_loader(dataset, list(self._steps()), positions, self.device)
        with self.signal, self.reporter:
            if is_main():
                announce(setup, self.method, self.device, self.precision, self.step, self.life.pace.before(self.step))
            batches = iter(loader)
            try:
                while self.epoch < self.config.num_epochs and not self.stopping.is_due:
                    self._run_epoch(batches)
            finally:
                stop_workers(batches)
            self._save(FINAL)
            if is_main():
                self.reporter.summary()

    def _steps(self) -> Iterator[tuple[Stream, int]]:
        """What is still to do: the rest of the epoch's steps, its validation, the epochs after it."""
        per_epoch = self.config.steps_per_epoch
        for epoch in range(self.epoch, self.config.num_epochs):
            for step in range(max(self.step, epoch * per_epoch), (epoch + 1) * per_epoch):
                yield "train", step
            for step in range(self._val_steps()):
                yield "val", step

    def _val_steps(self) -> int:
        return self.config.val_steps_per_epoch if len(self.setup.val) else 0

    def _run_epoch(self, batches: Iterator[LoadedBatch]) -> None:
        last = (self.epoch + 1) * self.config.steps_per_epoch
        batch = None
        self.method.train()
        self.meters.cost.lap("other")
        with self.life.epoch(self.epoch, self.step):
            while self.step < last:
                batch = next_batch(batches)
                self.meters.cost.lap("waiting")
                if self.step == 0 and is_main():
                    draw_views(self.setup, self.method, self._views(batch), batch.cases)
                self._train_step(batch)
                self.meters.cost.samples += self.config.volumes
                if self.probe is not None:
                    self.probe.after_step(self.step - 1)
                self.life.step(self.step)
                if self._told_to_stop():
                    self._interrupt()
        self.meters.settle()
        shown = self._validate(batches) or batch
        if shown and is_main() and self._saves(self.epoch + 1):
            draw_reconstruction(self.setup, self.method, self._views(shown), shown.cases, self.epoch + 1)
        self._finish_epoch()
        if self._told_to_stop() and self.epoch < self.config.num_epochs:  # a probe may have taken its time
            self._interrupt()

    def _train_step(self, batch: LoadedBatch) -> None:
        # a resumed run must draw the same random numbers as an uninterrupted one
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.step, rank()]).generate_state(1)[0]))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        try:
            output = self._forward(self.model, batch)
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(output.loss).backward()
        except torch.cuda.OutOfMemoryError:
            self._keep_steps()
            raise
        finally:
            if self.tf32:
                exact_products()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), self.config.gradient_clip or float("inf"))
        # with fp16 a gradient that overflows is expected: the scaler leaves that step out
        norm = norm.nan_to_num(0.0, 0.0) if self.scaler.is_enabled() else norm
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.method.after_step(self.step)
        self.meters.add("train", self.step, batch, output, self.signal.received, norm)
        self.step += 1

    def _forward(self, model: nn.Module, batch: LoadedBatch) -> StepOutput:
        views = self._views(batch)
        enabled = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision if enabled else None, enabled=enabled):
            output: StepOutput = model(views)
        return output

    @torch.no_grad()
    def _views(self, batch: LoadedBatch) -> Batch:
        return self.method.augment(to_device(batch.tensors, self.device, self.method.host_keys))

    @torch.no_grad()
    def _validate(self, batches: Iterator[LoadedBatch]) -> LoadedBatch | None:
        """Loss of the held-out volumes; returns their last batch, if there are any."""
        batch = None
        self.meters.begin_validation()
        self.method.eval()
        for step in range(self._val_steps()):
            batch = next_batch(batches)
            output = self._forward(self.method, batch)
            self.meters.add("val", step, batch, output, self.signal.received)
            self.life.validated(step + 1)
        self.meters.watch.settle()
        return batch

    def _told_to_stop(self) -> bool:
        """Whether to stop after this step; all processes read the same answer, from the step before."""
        return self.meters.watch.stop if world_size() > 1 else self.signal.received

    def _keep_steps(self) -> None:
        """Save the steps before one that did not fit; running statistics may have seen its batch."""
        self.optimiser.zero_grad(set_to_none=True)
        # other processes wait within the step, and their peer's end stops them
        if world_size() == 1 and self.step > self.first_step:
            self._save_between()

    def _save_between(self) -> None:
        self.meters.watch.settle()
        self.meters.count_probe("training")
        self._save(LATEST)

    def _interrupt(self) -> None:
        self._save_between()
        raise Interrupted(f"stopped after step {self.step}, everything is saved in {self.setup.folder / LATEST}; "
                          f"continue with --c")  # fmt: skip

    def _finish_epoch(self) -> None:
        self.epoch += 1
        row = self.meters.finish_epoch(self.epoch, self.step, learning_rate(self.config, self.step - 1))
        if is_main():
            self.setup.check_claim()
            self.reporter.epoch(row)
        improved = self.stopping.add(row)
        if is_main() and (improved or (self.probe is not None and self.probe.improved)):
            save_checkpoint(self._content(), self.setup.folder / BEST)
        if self._saves(self.epoch):
            self._save(LATEST)

    def _saves(self, epoch: int) -> bool:
        return epoch % self.config.save_every_epochs == 0 or epoch == self.config.num_epochs

    def _distribute(self) -> nn.Module:
        if world_size() == 1:
            return self.method
        if self.device.type == "cpu":
            weights_like_maps(self.method)
        # without device_ids, for which it would send a batch's host tensors to the card, whose values the host reads;
        # gradients in the buckets themselves: one copy of them less in memory, and one copying less a step; no
        # static_graph: it spares the search for unused parameters, which is off here
        return nn.parallel.DistributedDataParallel(self.method, gradient_as_bucket_view=True)

    def _save(self, name: str) -> None:
        if is_main():
            self.setup.check_claim()
            save_checkpoint(self._content(), self.setup.folder / name)
        barrier()  # no process leaves, and is taken for failed, before the file is complete

    def _content(self) -> dict[str, Any]:
        setup = self.setup
        return {
            "method": setup.method,
            "method_state": self.method.state_dict(),
            "optimiser_state": self.optimiser.state_dict(),
            "scaler_state": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            **self.meters.state(),
            **self.stopping.state(),
            "config": to_plain(self.config),
            "plans": setup.plans,
            "configuration": setup.configuration,
            "dataset_json": setup.dataset_json,
            "fingerprint": setup.fingerprint,
            "orientation": setup.orientation,
            "aligner": setup.aligner.identity,
            "train_cases": case_labels(setup.train),
            "val_cases": case_labels(setup.val),
            "versions": package_versions(),
            **self.origin,
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.method.load_state_dict(checkpoint["method_state"])
        load_optimiser(self.optimiser, checkpoint["optimiser_state"])
        self.scaler.load_state_dict(checkpoint["scaler_state"])
        self.step, self.epoch = checkpoint["step"], checkpoint["epoch"]
        self.meters.load_state(checkpoint)
        self.stopping.load_state(checkpoint)

"""The training loop, once for all methods."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnssl.data.loader import LoadedBatch, SampleDataset, Stream, make_loader, positions_of_rank, stop_workers
from nnssl.distributed import barrier, gather_objects, is_main, rank, world_size
from nnssl.errors import UserError
from nnssl.methods.base import Batch, Method, StepOutput, to_device
from nnssl.methods.options import to_plain
from nnssl.networks.sync_batch_norm import synchronise_batch_norm
from nnssl.pretraining.checkpoint import FINAL, LATEST, load_checkpoint, package_versions, save_checkpoint
from nnssl.pretraining.drawings import draw_reconstruction, draw_views
from nnssl.pretraining.metrics import (
    PendingStep,
    RunningMeans,
    collapse_warning,
    embedding_std,
    epoch_line,
    memory_gib,
    read_rows,
    write_rows,
)
from nnssl.pretraining.optimisation import build_optimiser, choose_precision, learning_rate, set_learning_rate
from nnssl.pretraining.pictures import draw_progress
from nnssl.pretraining.setup import Setup, case_labels
from nnssl.pretraining.signals import Interrupted, StopSignal
from nnssl.pretraining.weights import load_weights

log = logging.getLogger("nnssl")


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
        self.means: dict[Stream, RunningMeans] = {"train": RunningMeans(), "val": RunningMeans()}
        self.pending: deque[PendingStep] = deque()
        self.signal = StopSignal()
        self.stop = False  # whether any process got a signal
        self.embedding_dim = 0
        if setup.resume:
            self._restore(load_checkpoint(setup.resume))
        elif setup.pretrained:
            load_weights(self.method, setup.pretrained)
        self.model: nn.Module = self._distribute()

    def run(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: after SIGTERM or SIGUSR1; the checkpoint is written.
            UserError: the loss is not finite, or the memory does not suffice.
        """
        setup = self.setup
        dataset = SampleDataset(type(self.method), self.config, setup.train, setup.val, setup.aligner)
        positions = positions_of_rank(int(self.config.batch_size or 0), rank(), world_size())
        loader = make_loader(dataset, list(self._steps()), positions, self.device)
        with self.signal:
            batches = iter(loader)
            try:
                while self.epoch < self.config.num_epochs:
                    self._run_epoch(batches)
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(f"the card's memory does not suffice for a batch of {self.config.batch_size} with "
                                f"patches of {self.config.patch_size}; set a smaller -o batch_size=... or -o "
                                f"patch_size=...") from error  # fmt: skip
            finally:
                stop_workers(batches)
        self._save(FINAL)

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
        first, last = self.step, (self.epoch + 1) * self.config.steps_per_epoch
        begin, waited = time.perf_counter(), 0.0
        batch = None
        self.method.train()
        with self._bar(last - first) as bar:
            while self.step < last:
                asked = time.perf_counter()
                batch = _next(batches)
                waited += time.perf_counter() - asked
                if self.step == 0 and is_main():
                    draw_views(self.setup, self.method, self._views(batch), batch.cases)
                self._train_step(batch)
                spent = time.perf_counter() - begin
                samples = (self.step - first) * int(self.config.batch_size or 0)
                bar.set_postfix_str(f"{samples / spent:.2f} samples/s, data-wait {100 * waited / spent:.1f} %")
                bar.update()
                if self._told_to_stop():
                    self._interrupt()
        self._settle()
        seconds = time.perf_counter() - begin
        shown = self._validate(batches) or batch
        if shown and is_main() and self._saves(self.epoch + 1):
            draw_reconstruction(self.setup, self.method, self._views(shown), shown.cases, self.epoch + 1)
        samples = (last - first) * int(self.config.batch_size or 0)
        self._finish_epoch(seconds, waited / max(seconds, 1e-9), samples / max(seconds, 1e-9))

    def _train_step(self, batch: LoadedBatch) -> None:
        # a resumed run must draw the same random numbers as an uninterrupted one
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.step, rank()]).generate_state(1)[0]))
        rate = learning_rate(self.config, self.step)
        set_learning_rate(self.optimiser, rate)
        output = self._forward(self.model, batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(output.loss).backward()
        terms = {"loss": output.loss.detach(), **output.terms, "embedding_std": embedding_std(output.embeddings)}
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), self.config.gradient_clip or float("inf"))
        # with fp16 a gradient that overflows is expected: the scaler leaves that step out
        terms["gradient_norm"] = norm.nan_to_num(0.0, 0.0) if self.scaler.is_enabled() else norm
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.method.after_step(self.step)
        self.embedding_dim = output.embeddings.shape[1]
        self._watch("train", self.step, batch, terms)
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
        self.means["val"] = RunningMeans()
        self.method.eval()
        for step in range(self._val_steps()):
            batch = _next(batches)
            output = self._forward(self.method, batch)
            terms = {"loss": output.loss, **output.terms, "embedding_std": embedding_std(output.embeddings)}
            self._watch("val", step, batch, terms)
        self._settle()
        return batch

    def _watch(self, stream: Stream, step: int, batch: LoadedBatch, terms: dict[str, Tensor]) -> None:
        """Queue a step's metrics and read those of the step before: the device never waits for the log."""
        stop = torch.tensor(float(self.signal.received), device=self.device)
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()] + [stop])
        if world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= world_size()
        self.pending.append(PendingStep(stream, step, batch.cases, list(terms), values))
        while len(self.pending) > 1:
            self._read(self.pending.popleft())

    def _settle(self) -> None:
        while self.pending:
            self._read(self.pending.popleft())

    def _read(self, pending: PendingStep) -> None:
        *values, stop = pending.values.tolist()
        self.stop = stop > 0
        watched = {n: v for n, v in zip(pending.names, values, strict=True) if n in ("loss", "gradient_norm")}
        if not np.isfinite(list(watched.values())).all():
            name, value = next((n, v) for n, v in watched.items() if not np.isfinite(v))
            last = [f for f in (LATEST, FINAL) if (self.setup.folder / f).is_file()]
            good = str(self.setup.folder / last[0]) if last else "none was written yet"
            cases = sorted({case for share in gather_objects(pending.cases) for case in share})
            raise UserError(f"the {name.replace('_', ' ')} is {value} at step {pending.step} ({pending.stream}), cases "
                            f"{', '.join(cases)}; last good checkpoint: {good}; look at those "
                            f"volumes, or lower the rate with -o learning_rate=...")  # fmt: skip
        self.means[pending.stream].add(pending.names, values)

    def _told_to_stop(self) -> bool:
        """Whether to stop after this step; all processes read the same answer, from the step before."""
        return self.stop if world_size() > 1 else self.signal.received

    def _interrupt(self) -> None:
        self._settle()
        self._save(LATEST)
        raise Interrupted(f"stopped after step {self.step}, everything is saved in {self.setup.folder / LATEST}; "
                          f"continue with --c")  # fmt: skip

    def _finish_epoch(self, seconds: float, data_wait: float, samples_per_second: float) -> None:
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            **self.means["train"].means(),
            **(self.means["val"].means("val_") if self._val_steps() else {}),
            "embedding_dim": self.embedding_dim,
            "learning_rate": learning_rate(self.config, self.step - 1),
            "samples_per_second": samples_per_second,
            "data_wait": data_wait,
            "memory_gib": memory_gib(self.device),
            "seconds": seconds,
        }
        self.means["train"] = RunningMeans()
        if is_main():
            file = self.setup.folder / "metrics.jsonl"
            rows = [r for r in read_rows(file) if r["epoch"] < self.epoch] + [row]
            write_rows(file, rows)
            draw_progress(rows, self.setup.folder / "progress.png", self.setup.folder.parent.name)
            log.info(epoch_line(row, self.config.num_epochs))
            if warning := collapse_warning(row):
                log.warning(warning)
        if self._saves(self.epoch):
            self._save(LATEST)

    def _saves(self, epoch: int) -> bool:
        return epoch % self.config.save_every_epochs == 0 or epoch == self.config.num_epochs

    def _bar(self, total: int) -> tqdm[Any]:
        description = f"epoch {self.epoch + 1}/{self.config.num_epochs}"
        # disable=None: only on a terminal
        return tqdm(total=total, desc=description, leave=False, disable=None if is_main() else True)

    def _distribute(self) -> nn.Module:
        if world_size() == 1:
            return self.method
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.method, device_ids=ids)

    def _save(self, name: str) -> None:
        if is_main():
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
            "train_means": self.means["train"].state(),
            "embedding_dim": self.embedding_dim,
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
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.method.load_state_dict(checkpoint["method_state"])
        self.optimiser.load_state_dict(checkpoint["optimiser_state"])
        self.scaler.load_state_dict(checkpoint["scaler_state"])
        self.step, self.epoch = checkpoint["step"], checkpoint["epoch"]
        self.means["train"] = RunningMeans(**checkpoint["train_means"])
        self.embedding_dim = checkpoint["embedding_dim"]


def _next(batches: Iterator[LoadedBatch]) -> LoadedBatch:
    batch = next(batches)
    if batch.failure:
        raise UserError(batch.failure)
    return batch

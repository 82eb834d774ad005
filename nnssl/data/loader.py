"""The loader: sample i of step s is a pure function of (seed, stream, s, i), in any process.

Positions i run over the whole batch of all processes, so the data do not depend on the number of processes, of workers,
or on interruptions. Workers hold no state.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nnssl.core.batch_memory import BatchMemory
from nnssl.core.errors import UserError
from nnssl.core.signals import die_with_parent, ignore_signals
from nnssl.core.system import unreadable, why
from nnssl.data.batches import LoadedBatch, collated
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.methods.base import Match, Method, Sample


class Aligner(Protocol):
    """Finds a point of a volume in another one; picklable."""

    @property
    def identity(self) -> str:
        """What it is, for the checkpoint: a run goes on with the aligner that it began with."""

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Draw a point of `volume` and find the same place in `other`."""


@dataclass(frozen=True)
class RelativePosition:
    """The same relative position in the bounding box of the body; needs no pixel embeddings (methods.md 4.1)."""

    @property
    def identity(self) -> str:
        """It has no options."""
        return "position"

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Take a random voxel of the body; the match need not be body."""
        point = volume.random_body_voxel(rng)
        mine, theirs = volume.body_box, other.body_box
        place = (point + 0.5 - mine.start) / (mine.stop - mine.start)
        matched = np.floor(theirs.start + place * (theirs.stop - theirs.start)).astype(np.int64)
        return Match(point, other, matched)


Stream = Literal["train", "val"]
Key = tuple[Stream, int, int]  # stream, step, position in the whole batch
_STREAMS: dict[Stream, int] = {"train": 0, "val": 1}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_AHEAD = 4  # batches that a worker prepares before they are needed


@dataclass(frozen=True)
class Cases:
    """The volumes of a run: `folders[folder_of[i]]` holds case `names[i]`; arrays, which forked workers share."""

    folders: tuple[VolumeFolder, ...]
    folder_of: np.ndarray
    names: np.ndarray

    @classmethod
    def of(cls, folders: Sequence[VolumeFolder], names: Sequence[Sequence[str]]) -> Cases:
        """From the case names of every folder."""
        which = np.repeat(np.arange(len(folders)), [len(n) for n in names])
        return cls(tuple(folders), which, np.array([c for n in names for c in n], dtype=np.str_))

    def __len__(self) -> int:
        return len(self.names)

    def label(self, i: int) -> str:
        """Dataset and case, for messages."""
        return f"{self.folders[self.folder_of[i]].name}/{self.names[i]}"


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, stream, turn, count]).permutation(count)


def cases_of_step(seed: int, stream: Stream, step: int, distinct: int, count: int) -> np.ndarray:
    """Indices (distinct,) of the volumes of a step: without repetition where count >= distinct.

    Every volume is drawn once per turn of count // distinct steps (up to the remainder), in an order that changes from
    turn to turn. The order of the stream "val" does not change: its steps are the same in every epoch.
    """
    if count < distinct:
        return (np.arange(distinct) + step * distinct) % count
    turn, place = divmod(step, count // distinct)
    order = _permutation(seed, _STREAMS[stream], 0 if stream == "val" else turn, count)
    return order[place * distinct : (place + 1) * distinct]


class SampleDataset(Dataset[tuple[str, "Sample | str"]]):
    """Samples by key (stream, step, position): the case's name, and its sample or the sentence of an error.

    Args:
        method, config: what samples a volume.
        train, val: the volumes of both streams.
        aligner: finds the points of `Volume.match`.
    """

    def __init__(
        self, method: type[Method], config: Any, train: Cases, val: Cases, aligner: Aligner | None = None
    ) -> None:
        self.method, self.config, self.aligner = method, config, aligner or RelativePosition()
        self.cases: dict[Stream, Cases] = {"train": train, "val": val}

    def __getitem__(self, key: Key) -> tuple[str, Sample | str]:
        stream, step, position = key
        cases, seed = self.cases[stream], self.config.seed
        distinct = self.method.volumes_per_step(self.config)
        chosen = cases_of_step(seed, stream, step, distinct, len(cases))
        index = int(chosen[position % distinct])
        folder, case, label = cases.folders[cases.folder_of[index]], str(cases.names[index]), cases.label(index)
        rng = np.random.default_rng([seed, _STREAMS[stream], step, position])
        try:
            with reading(folder, case):
                volume = folder.open(case, index, partial(self._match, stream))
                return label, self.method.sample(volume, self.config, rng)
        except UserError as error:  # torch would wrap an error of a worker in the worker's traceback
            return label, str(error)

    def _match(self, stream: Stream, volume: BloscVolume, rng: np.random.Generator) -> Match:
        """A point of a volume in another one of its stream, or of the training if it is alone in its stream."""
        cases = self.cases[stream]
        if len(cases) > 1:
            drawn = int(rng.integers(len(cases) - 1))
            drawn += drawn >= volume.index
        else:
            cases = self.cases["train"]
            drawn = int(rng.integers(len(cases)))
        folder, case = cases.folders[cases.folder_of[drawn]], str(cases.names[drawn])
        with reading(folder, case):
            return self.aligner.match(volume, folder.open(case, drawn), rng)


@contextlib.contextmanager
def reading(folder: VolumeFolder, case: str) -> Iterator[None]:
    """Turn what goes wrong while a volume is read into a sentence.

    Raises:
        UserError: the system does not give the file, or it is cut or damaged.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        files = [home / f"{case}.b2nd" for home in (folder.images, folder.bodies)]
        # blosc2 raises the same error for a lost mount and for a damaged file, which only then is to be deleted
        refused = [cause for file in files if (cause := unreadable(file)) is not None]
        sentences = [said for cause in (error, *refused) if (said := why(cause, "continue with --c"))]
        if sentences:
            raise UserError(f"{folder.name}/{case}: {sentences[0]}") from error
        raise UserError(f"{folder.name}/{case} cannot be read ({error}); delete {files[0]} and run "
                        f"nnssl_plan_and_preprocess again") from error  # fmt: skip


def positions_of_rank(batch_size: int, rank: int, world_size: int) -> range:
    """This process's positions of the whole batch; the batch size is a multiple of the number of processes."""
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def make_loader(
    dataset: SampleDataset, steps: Sequence[tuple[Stream, int]], positions: range, device: torch.device
) -> DataLoader[Any]:
    """Batches of the given steps in order, read ahead by worker processes, in pinned memory for CUDA.

    The number of workers is nnU-Net's `nnUNet_n_proc_DA`, else one less than the cores, between 1 and 8.
    """
    workers, pinned = number_of_workers(), device.type == "cuda"
    # A worker has at most _AHEAD batches that are not pinned yet, and one that it makes.
    memory = BatchMemory(_AHEAD + 1 if pinned else 0)
    return DataLoader(
        dataset,
        batch_sampler=_Batches(steps, positions),
        num_workers=workers,
        collate_fn=partial(collated, dataset.method.collate, memory),
        pin_memory=pinned,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )


def number_of_workers() -> int:
    """Loader processes: `nnUNet_n_proc_DA` where it is set, else by the number of cores.

    Raises:
        UserError: the variable is not a number.
    """
    value = os.environ.get("nnUNet_n_proc_DA")
    if value and not (value.isascii() and value.isdecimal() and len(value) <= 4):
        raise UserError(f"nnUNet_n_proc_DA={value} is not a number of processes; type: export nnUNet_n_proc_DA=8")
    return int(value) if value else min(8, max(1, (os.cpu_count() or 2) - 1))


class _Batches:
    """The keys of every step's batch."""

    def __init__(self, steps: Sequence[tuple[Stream, int]], positions: range) -> None:
        self.steps, self.positions = steps, positions

    def __iter__(self) -> Iterator[list[Key]]:
        for stream, step in self.steps:
            yield [(stream, step, i) for i in self.positions]

    def __len__(self) -> int:
        return len(self.steps)


def next_batch(batches: Iterator[LoadedBatch]) -> LoadedBatch:
    """The next one.

    Raises:
        UserError: a volume cannot be read.
        RuntimeError: a worker has ended, in torch's words.
    """
    try:
        batch = next(batches)
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # of the pipes to a worker that was killed
        raise RuntimeError("DataLoader worker exited unexpectedly") from error
    if batch.failure:
        raise UserError(batch.failure)
    return batch


def stop_workers(batches: Iterator[LoadedBatch]) -> None:
    """End the worker processes of an iterator over a loader.

    They ignore signals, and a traceback may keep the iterator alive: without this the interpreter would wait for them
    for ever at its end. torch has no public function for it. A worker that waits for a lock of a killed one must be
    killed.
    """
    shutdown = getattr(batches, "_shutdown_workers", None)
    if shutdown is not None:
        try:
            shutdown()
        finally:
            for worker in getattr(batches, "_workers", []):
                worker.kill()


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    _keep_freed_memory()
    # a signal to the process group must not kill the workers: the main process ends the step, saves, and stops them
    ignore_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def _keep_freed_memory() -> None:
    """Let this process use its freed memory again: fresh pages for every sample cost the system as much as reading it.

    glibc would hand large arrays back at once, and others after every batch. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_MMAP_MAX, 0)

"""A step's batch on its way from a worker to the process that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from nnssl.core.batch_memory import BatchMemory, Place, tensor_at
from nnssl.methods.base import Batch, Sample


@dataclass
class LoadedBatch:
    """A collated batch and the cases that it was cut from; or what failed, without tensors."""

    cases: list[str]
    tensors: Batch
    failure: str | None = None

    piece: Tensor | None = None  # of shared memory, which holds the tensors of a worker's batch at these places
    places: dict[str, Place] = field(default_factory=dict)

    def pin_memory(self) -> LoadedBatch:
        """Called by the loader's pinning thread."""
        if self.piece is None:
            return LoadedBatch(self.cases, {k: v.pin_memory() for k, v in self.tensors.items()}, self.failure)
        return LoadedBatch.of_piece(self.cases, self.piece.pin_memory(), self.places)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes only the piece travels."""
        if self.piece is None:
            return LoadedBatch, (self.cases, self.tensors, self.failure)
        return LoadedBatch.of_piece, (self.cases, self.piece, self.places)

    @classmethod
    def of_piece(cls, cases: list[str], piece: Tensor, places: dict[str, Place]) -> LoadedBatch:
        """A batch whose tensors are parts of a piece of memory."""
        tensors = {name: tensor_at(piece, place) for name, place in places.items()}
        return cls(cases, tensors, piece=piece, places=places)


def collated(
    collate: Callable[[list[Sample]], Batch], memory: BatchMemory, items: list[tuple[str, Sample | str]]
) -> LoadedBatch:
    """The batch of a step from its samples, or from the sentences of errors; called in a worker, if there are any.

    Args:
        collate: the method's.
        memory: of the worker.
        items: case and sample, or case and sentence.
    """
    cases = [case for case, _ in items]
    failures = [sample for _, sample in items if isinstance(sample, str)]
    if failures:
        return LoadedBatch(cases, {}, failures[0])
    samples = [sample for _, sample in items if not isinstance(sample, str)]
    if get_worker_info() is None:
        return LoadedBatch(cases, collate(samples))
    with memory.batch():
        return LoadedBatch.of_piece(cases, *memory.packed(collate(samples)))

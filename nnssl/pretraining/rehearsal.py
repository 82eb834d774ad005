"""A training step on a card that is only pretended: what the host waits for, peak memory and operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nnssl.core.geometry import Box
from nnssl.core.pretended_card import CARD, PretendedCard, Remark, pretended_card
from nnssl.core.signals import StopSignal
from nnssl.data.loader import LoadedBatch
from nnssl.methods.base import Batch, Match, Method, MethodConfig, Volume
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.meters import Meters
from nnssl.pretraining.optimisation import build_optimiser, choose_precision
from nnssl.pretraining.setup import Setup
from nnssl.pretraining.tf32 import use_tf32


@dataclass(frozen=True)
class Rehearsal:
    """What a training step asks of a card.

    Args:
        waits: operations whose result the host waits for, each of which lets the card run dry.
        wide: results of float64 on the card, which most cards compute 32 to 64 times slower.
        peak_bytes: most memory that tensors take at a time, without that of cuDNN and of CUDA itself.
        flop: of convolutions and matrix products, two a multiply-add, what checkpoints compute again included.
    """

    waits: tuple[Remark, ...]
    wide: tuple[Remark, ...]
    peak_bytes: int
    flop: int

    @property
    def peak_gib(self) -> float:
        """Peak memory in GiB."""
        return self.peak_bytes / 2**30


class _Dress(Pretraining):
    """A run that never begins: the loop's own step, without data, probe and files."""

    def __init__(self, setup: Setup, method: Method) -> None:
        self.setup, self.config, self.device = setup, setup.config, CARD
        self.method = self.model = method
        self.optimiser = build_optimiser(self.config, method.parameters())
        self.precision = choose_precision(self.config, CARD)
        self.tf32 = use_tf32(method, CARD, self.precision)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision == torch.float16)
        self.step = self.epoch = 0
        self.tf32 = False
        self.signal, self.probe = StopSignal(), None
        self.meters = Meters(setup, CARD, None)

    def rehearse(self, card: PretendedCard, batch: Batch) -> None:
        """Take a step as one of those after the first, which makes the optimiser's moments."""
        for parameter in self.method.parameters():
            parameter.grad = card.empty_like(parameter) if parameter.requires_grad else None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.method.train()
        card.begin()
        self._train_step(LoadedBatch([], batch))
        self.meters.watch.settle()


def rehearse(setup: Setup, method: Method | None = None) -> Rehearsal:
    """Rehearse the training step of a run on this process's share of a card.

    Nothing is computed on the card, which may be missing.

    Args:
        setup: of the run; its files are not read.
        method: of the run, on any device; None: it is built, which takes its memory on the host.
    """
    method = method or setup.build_method()
    batch = example_batch(setup.config, setup.method_class, len(setup.resolved["normalization_schemes"]))
    with pretended_card() as card:
        card.pin(batch)
        _Dress(setup, card.take(method)).rehearse(card, batch)
    return Rehearsal(tuple(card.waits), tuple(card.wide), card.peak_bytes, card.flop)


def example_batch(config: MethodConfig, method: type[Method], channels: int) -> Batch:
    """A batch of empty CT volumes that are body everywhere, of the sizes that the volumes of a run give."""
    rng = np.random.default_rng(0)
    volumes = [_Empty(index, config.patch, channels) for index in range(config.volumes)]
    return method.collate([method.sample(volume, config, rng) for volume in volumes])


class _Empty(Volume):
    """A CT volume of zeros, larger than the patch."""

    spacing = (1.5, 1.5, 1.5)

    def __init__(self, index: int, patch: tuple[int, int, int], channels: int) -> None:
        self.index, self._patch, self._channels = index, np.asarray(patch), channels

    @property
    def hu_affine(self) -> np.ndarray:
        return np.tile([-1350.0, 2350.0], (self._channels, 1))

    @property
    def is_ct(self) -> np.ndarray:
        return np.ones(self._channels, dtype=bool)

    @property
    def size(self) -> np.ndarray:
        return self._patch + self._patch // 2

    @property
    def body_box(self) -> Box:
        return Box(np.zeros(3, dtype=np.int64), self.size)

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return np.zeros((self._channels, *(stop - start)), dtype=np.float32)

    def read_body(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return np.ones(tuple(stop - start), dtype=bool)

    def read_resized_body(self, largest: tuple[int, int, int]) -> np.ndarray:
        return np.zeros((self._channels, *largest), dtype=np.float16)

    def random_body_voxel(self, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(rng.integers(0, self.size))

    def match(self, rng: np.random.Generator) -> Match:
        return Match(self.random_body_voxel(rng), self, self.random_body_voxel(rng))

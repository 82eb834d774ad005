"""The online probe: what a pretraining's features are worth, measured while it runs (methods.md 1.4).

A linear and a non-linear head learn to segment a labelled dataset from the current features of the backbone, which gets
no gradient. Everything that the probe draws is a function of the run's seed and the step, so that it neither disturbs
the pretraining nor depends on interruptions.
"""

from __future__ import annotations

import logging
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.methods.base import Method
from nnssl.networks.heads import upsampled_to
from nnssl.networks.pyramid import FeaturePyramid, gather_voxels
from nnssl.pretraining.cost import Clock
from nnssl.pretraining.probe_data import LabelledCases, ProbeData, Window
from nnssl.pretraining.probe_heads import (
    LINEAR,
    DiceCounts,
    FrozenFeatures,
    fit_step,
    fresh_heads,
    mean_dice,
    sample_voxels,
)
from nnssl.pretraining.setup import Setup

_RATE = 1e-2  # of Adam [D]; vox2vec has 3e-4 and 100,000 steps, here a short run gives the heads a hundred
CROPS = 2  # of one forward pass: one crop alone takes a CPU as long as two
_UPDATES = 4  # steps of the heads with the same crops, on voxels of their own
_FEWEST_UPDATES = 30  # of the heads in a run: a weight must move by 0.3 (docs/tracking.md, measured)
_STREAM = 18  # tells the random numbers of the voxels from those of the crops

log = logging.getLogger("nnssl")


class OnlineProbe:
    """Heads on the frozen current features of a method's backbone.

    Args:
        setup: of the run, with a `probe`.
        method: whose backbone is probed.
        device: of the run.
        precision: of the backbone's forward pass; the heads compute in float32.
    """

    def __init__(self, setup: Setup, method: Method, device: torch.device, precision: torch.dtype) -> None:
        assert isinstance(setup.probe, ProbeData)
        self.config, self.data, self.device = setup.config, setup.probe, device
        self.cases = LabelledCases(self.data, setup.config.patch)
        self.features = FrozenFeatures(method, device, precision)
        classes = len(self.data.values)
        self.heads = fresh_heads(self.config.seed, self.features.channels, self.features.strides, classes).to(device)
        self.optimiser = torch.optim.Adam(self.heads.parameters(), lr=_RATE)
        self.windows = self.cases.held_out_windows()
        self.improved = False
        self._best, self._updates = -1.0, 0
        self._cost: StepCost | None = StepCost(method)
        self._units = 0.0  # of a training step; known after the first
        self._clock, self._said = Clock(device), False

    def take_seconds(self) -> float:
        """Wall seconds since the last call; what a card is still computing is counted later."""
        return self._clock.take()

    @property
    def interval(self) -> int:
        """Epochs between evaluations."""
        return self.data.every or evaluation_interval(
            self._units, self.config.steps_per_epoch, self.config.num_epochs, len(self.windows)
        )

    def after_step(self, step: int) -> None:
        """Train the heads where that is due after training step `step` (from 0)."""
        if self._cost is not None:
            self._units, self._cost = self._cost.units(), None
            self._warn_of_few_updates()
        if step % training_interval(self._units):
            return
        with self._clock.running():
            self._train(step)

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        """Dice on the held-out cases after `epoch` finished epochs, by head, also of every label; empty if not due."""
        self.improved = False
        if epoch % self.interval and epoch != self.config.num_epochs:
            return {}
        with self._clock.running():
            affordable = windows_within(self._units, self.interval * self.config.steps_per_epoch)
            windows = self.windows[: max(affordable, len(self.data.held_out))]  # at least one a case
            metrics = self._evaluate(windows)
        score = metrics.get(f"probe_{LINEAR}_dice", -1.0)
        self.improved, self._best = score > self._best, max(score, self._best)
        self._say(len(windows))
        return metrics

    def state(self) -> dict[str, Any]:
        """What a continued run needs, and which data it must have; tensors and plain types."""
        return {
            "identity": self.data.identity,
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self._best,
            "updates": self._updates,
            "units": self._units,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._best, self._updates, self._units = state["best"], state["updates"], state["units"]
        if self._cost is not None and self._units:
            self._cost.close()
            self._cost = None

    def _train(self, step: int) -> None:
        crops = [self.cases.crop(self.config.seed, CROPS * step + i) for i in range(CROPS)]
        crops = [crop for crop in crops if (crop.classes >= 0).any()]
        if not crops:
            return
        pyramid = self.features(self._to_device(np.stack([crop.image for crop in crops])))
        self.heads.train()
        for update in range(_UPDATES):
            rng = np.random.default_rng([self.config.seed, _STREAM, step, update])
            samples = [sample_voxels(rng, crop.classes) for crop in crops]
            numbered = [np.insert(sample.voxels, 0, i, axis=1) for i, sample in enumerate(samples)]
            with torch.no_grad():
                voxels = self._to_device(np.concatenate(numbered))
                rows = gather_voxels(pyramid, self.features.strides, voxels).float()
            classes, weights = (self._to_device(np.concatenate(part)) for part in list(zip(*samples, strict=True))[1:])
            self.heads.set_update(self._updates)
            fit_step(self.optimiser, self.heads.of_voxels(rows), classes, weights)
            self._updates += 1

    @torch.no_grad()
    def _evaluate(self, windows: list[Window]) -> dict[str, float]:
        self.heads.eval()
        names = list(self.heads.heads)
        counts = {
            name: {case: DiceCounts(self.data.values, self.data.labels) for case in self.data.held_out}
            for name in names
        }
        for begin in range(0, len(windows), CROPS):
            some = windows[begin : begin + CROPS]
            read = [self.cases.window(case, box) for case, box in some]
            pyramid = self.features(self._to_device(np.stack([crop.image for crop, _ in read])))
            for name, logits in self.heads.of_maps(pyramid).items():
                found = logits.argmax(1, keepdim=True).float()
                whole = upsampled_to(found, self.features.strides[0], self.cases.patch.tolist())[:, 0].long()
                for window, (crop, inside), predicted in zip(some, read, whole.cpu().numpy(), strict=True):
                    counts[name][window.case].add(crop.classes[inside], predicted[inside])
        metrics = {}
        for name in names:
            for label, dice in mean_dice([c.dice() for c in counts[name].values()]).items():
                metrics[f"probe_{name}_dice{'_' * bool(label)}{label}"] = dice
        return metrics

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # from pinned memory the copy does not wait for what the card still computes
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _warn_of_few_updates(self) -> None:
        steps, interval = self.config.num_epochs * self.config.steps_per_epoch, training_interval(self._units)
        updates = ceil(steps / interval) * _UPDATES
        if updates < _FEWEST_UPDATES:
            epochs = ceil(self.config.num_epochs * _FEWEST_UPDATES / updates)
            log.warning(f"the heads of the probe take {updates} of at least {_FEWEST_UPDATES} steps in this run of "
                        f"{steps:,}, so that their Dice tells of the heads, not of the features; with "
                        f"-o num_epochs={epochs} they take enough")  # fmt: skip

    def _say(self, windows: int) -> None:
        """Say once what is measured, on which data, and at what cost."""
        if self._said:
            return
        self._said = True
        part = "all" if windows >= len(self.windows) else f"{windows} of the {len(self.windows)}"
        log.info(f"probe on {self.data.folder.name}: the heads learn from {CROPS} crops every "
                 f"{training_interval(self._units)} steps; Dice every {self.interval} epochs on {part} windows of "
                 f"{len(self.data.held_out)} held-out cases; so far it took {self._clock.total:.1f} s, "
                 f"{100 * self._clock.share:.1f} % of the time")  # fmt: skip


TRAINING_SHARE = 0.04  # of the run's units, for training the heads
EVALUATION_SHARE = 0.03  # for the Dice
EVALUATIONS = 20  # in a run, at most, unless the user says how often
_BACKWARD = 2  # units of the backward pass of one forward pass
_TRAINING_COST = 4.0  # units of two crops for the heads: reading, forward pass, steps of the heads
_WINDOW_COST = 1.5  # units of one window: reading, forward pass, both heads on every voxel
_ENOUGH_WINDOWS = 8  # an evaluation with fewer waits for more budget


class StepCost:
    """Counts what one training step forwards, by hooks that are gone after the first step.

    Crops through any feature pyramid of the method count, three units where a gradient follows. A network that hides
    blocks in a way of its own is not called as a module: there the images of the batch count, visible part only.
    """

    def __init__(self, method: Method) -> None:
        self.patch = prod(method.config.patch_size)
        self.voxels = 0.0
        self._of_batch = 0.0
        pyramids = [m for m in method.modules() if isinstance(m, FeaturePyramid)]
        self._handles = [m.register_forward_pre_hook(self._count) for m in pyramids]
        self._handles.append(method.register_forward_pre_hook(self._count_batch))

    def units(self) -> float:
        """Units of the steps since the hooks were set, which are removed."""
        self.close()
        return (self.voxels or self._of_batch) / self.patch

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        follows = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        self.voxels += args[0].shape[0] * prod(args[0].shape[2:]) * (1 + _BACKWARD * follows)

    def _count_batch(self, module: Method, args: tuple[Any, ...]) -> None:
        visible = 1 - getattr(module.config, "mask_ratio", 0.0) if module.backbone.encodes_blocks else 1
        images = [t for t in args[0].values() if t.ndim >= 5 and t.is_floating_point()]
        voxels = sum(t.numel() for t in images) / module.backbone.input_channels
        self._of_batch += (1 + _BACKWARD) * visible * voxels


def training_interval(units: float) -> int:
    """Steps from one training of the heads to the next, in a run whose steps cost `units`."""
    return max(1, ceil(_TRAINING_COST / (TRAINING_SHARE * max(units, 1e-9))))


def evaluation_interval(units: float, steps_per_epoch: int, num_epochs: int, windows: int) -> int:
    """Epochs between evaluations: at most `EVALUATIONS` of them, and budget for several windows (of `windows`)."""
    enough = min(windows, _ENOUGH_WINDOWS)
    wait = ceil(enough * _WINDOW_COST / (EVALUATION_SHARE * max(units, 1e-9) * steps_per_epoch))
    return min(num_epochs, max(wait, ceil(num_epochs / EVALUATIONS)))


def windows_within(units: float, steps: int) -> int:
    """Windows that an evaluation after `steps` steps may use."""
    return int(EVALUATION_SHARE * units * steps / _WINDOW_COST)

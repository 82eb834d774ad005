"""Fine-tuning for a label a scan, as a task of the pretraining's loop: crops, head and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.methods.base import Batch, Method, MethodConfig, Sample, StepOutput, Volume, at_least, below_one
from nnssl.methods.panel import Panel
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.pyramid import FeaturePyramid

_SHOWN = 3  # crops of `views.png`
_LEAST_SPREAD = 1e-2  # of the largest deviation: features that hardly vary are not blown up
_ROUNDING = 1e-6  # of the largest feature


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(MethodConfig):
    """Hyper-parameters; optimiser, rate, decay, dropout and smoothing are those of VoCo's and OpenMind's scans."""

    num_epochs: int = 100
    optimiser: Literal["adam", "adamw", "sgd", "nesterov"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    save_every_epochs: int = 5
    dropout: float = 0.2
    label_smoothing: float = 0.2
    class_weights: bool = False  # each class counts alike, whatever its number of cases
    patience: int | None = 20  # epochs without a lower loss of the held-out cases; none: train to the last epoch
    # augmentation of normalised values; mirroring is off, since it hides which side something is on
    flip_probability: float = 0.0
    contrast: float = 0.1  # factor from 1 - contrast to 1 + contrast
    brightness: float = 0.1  # shift, either way
    noise_sigma: float = 0.1  # largest deviation

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one(self, "dropout", "label_smoothing", "contrast")
        at_least(self, 1, "patience")
        at_least(self, 0, "brightness", "noise_sigma")


@dataclass(frozen=True)
class Values:
    """What the cases of both streams are worth; plain and picklable.

    Args:
        train: of the training cases, in the loop's order: numbers of classes, or standardised numbers.
        held_out: of those that tell when to stop.
        classes: their number; 0 for a regression.
    """

    train: tuple[float, ...]
    held_out: tuple[float, ...]
    classes: int


class ScanClassification(Method):
    """The last map of the encoder, its mean over the body, standardised, dropout, and a linear layer."""

    config_class = ClassificationConfig
    levels = "encoder"
    collapses = False
    config: ClassificationConfig

    def __init__(self, backbone: FeaturePyramid, config: ClassificationConfig, values: Values) -> None:
        super().__init__(backbone, config)
        self.input_channels, self.classes = backbone.input_channels, values.classes
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(backbone.channels[-1], max(values.classes, 1))
        for name, of_cases in (("train_values", values.train), ("held_out_values", values.held_out)):
            self.register_buffer(name, torch.tensor(of_cases, dtype=torch.float32), persistent=False)
        self.register_buffer("centre", torch.zeros(backbone.channels[-1]))
        self.register_buffer("spread", torch.ones(backbone.channels[-1]))
        self.register_buffer("class_weights", self._class_weights(values), persistent=False)

    def pretrained_tensors(self) -> dict[str, Tensor]:
        """What a pretraining fills."""
        return self.backbone.used_tensors()

    def own_tensors(self) -> dict[str, Tensor]:
        """All that the scores depend on."""
        return {**self.backbone.used_tensors(), **dict(self.head.named_parameters(prefix="head"))}

    def standardise(self, features: Tensor) -> None:
        """Let the head see features with mean 0 and deviation 1 over these rows (M, C): of means they vary little."""
        deviation = features.std(0, correction=0)
        largest = float(deviation.max())
        self.centre.copy_(features.mean(0))
        if largest > _ROUNDING * float(features.abs().max()):  # else all rows are alike
            self.spread.copy_(deviation.clamp(min=_LEAST_SPREAD * largest))

    def features(self, batch: Batch) -> Tensor:
        """(B, C) means of the last map over the body, float32."""
        return in_parts(self._means, self.config.accumulate if self.training else 1, batch["crop"], batch["body"])

    def _means(self, crops: Tensor, bodies: Tensor) -> Tensor:
        return body_mean(self.backbone(crops)[-1], bodies)

    def _class_weights(self, values: Values) -> Tensor | None:
        if not self.config.class_weights or not values.classes:
            return None
        counts = torch.bincount(torch.tensor(values.train).long(), minlength=values.classes)
        return len(values.train) / (values.classes * counts.clamp(min=1).float())

    @classmethod
    def sample(cls, volume: Volume, config: ClassificationConfig, rng: np.random.Generator) -> Sample:
        """Draw a crop around a random voxel of the body; of an axis that the patch covers, all of it, shifted.

        Returns arrays, for C channels and a patch P:
            crop: (C, *P) float32, the plans' normalised values, zero outside the volume.
            body: (*P,) bool.
            index: () the volume's number in its stream.
            flips: (3,) bool; contrast, brightness, noise_sigma: () float32; noise_seed: () int64.
        """
        patch, size = np.asarray(config.patch), np.asarray(volume.size)
        room = np.abs(size - patch)
        shift = (rng.random(3) * (room + 1)).astype(np.int64)
        around = np.clip(volume.random_body_voxel(rng) - patch // 2, 0, np.maximum(size - patch, 0))
        start = np.where(patch >= size, -shift, around)
        strength = rng.uniform(-1, 1, size=2)
        return {
            "crop": volume.read(start, start + patch),
            "body": volume.read_body(start, start + patch),
            "index": np.asarray(volume.index),
            "flips": rng.random(3) < config.flip_probability,
            "contrast": np.float32(1 + strength[0] * config.contrast),
            "brightness": np.float32(strength[1] * config.brightness),
            "noise_sigma": np.float32(rng.random() * config.noise_sigma),
            "noise_seed": np.asarray(rng.integers(2**31)),
        }  # fmt: skip

    host_keys = frozenset({"flips", "noise_seed"})

    def augment(self, batch: Batch) -> Batch:
        """Flip each crop with its body, and change its values; the held-out ones stay as they are."""
        crops, bodies = batch["crop"], batch["body"]
        if not self.training:
            return {"crop": crops, "body": bodies, "index": batch["index"]}
        made, masks = [], []
        for i, (crop, body) in enumerate(zip(crops, bodies, strict=True)):
            axes = [axis for axis in range(3) if batch["flips"][i, axis]]
            generator = torch.Generator().manual_seed(int(batch["noise_seed"][i]))
            noise = torch.randn(crop.shape, generator=generator).to(crop.device)
            values = crop.flip([axis + 1 for axis in axes]) * batch["contrast"][i] + batch["brightness"][i]
            made.append(values + batch["noise_sigma"][i] * noise)
            masks.append(body.flip(axes))
        return {"crop": torch.stack(made), "body": torch.stack(masks), "index": batch["index"]}

    def step(self, batch: Batch) -> StepOutput:
        """Cross-entropy with label smoothing, or the squared error of standardised numbers."""
        features = (self.features(batch) - self.centre) / self.spread
        scores = self.head(self.dropout(features)).float()
        values = (self.train_values if self.training else self.held_out_values)[batch["index"]]
        if not self.classes:
            loss = F.mse_loss(scores[:, 0], values)
            return StepOutput(loss, {}, features.detach())
        loss = F.cross_entropy(scores, values.long(), self.class_weights, label_smoothing=self.config.label_smoothing)
        right = (scores.detach().argmax(1) == values.long()).float().mean()
        return StepOutput(loss, {"accuracy": right}, features.detach())

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """The three middle slices of each of the first crops."""
        return [
            [Panel(crop.take(crop.shape[axis] // 2, axis), f"slice across axis {axis}") for axis in range(3)]
            for crop in batch["crop"][:_SHOWN, 0].numpy()
        ]

    train_values: Tensor
    held_out_values: Tensor
    class_weights: Tensor | None
    centre: Tensor
    spread: Tensor


def body_mean(cells: Tensor, body: Tensor) -> Tensor:
    """Mean of a map (B, C, Z', Y', X') over the body (B, Z, Y, X): (B, C), float32.

    A cell counts as often as it has body voxels; without any, all cells count alike.
    """
    stride = [n // c for n, c in zip(body.shape[1:], cells.shape[2:], strict=True)]
    share = F.avg_pool3d(body[:, None].float(), stride)[:, 0]
    empty = share.sum((1, 2, 3), keepdim=True) == 0
    share = torch.where(empty, torch.ones_like(share), share)
    weights = share / share.sum((1, 2, 3), keepdim=True)
    return torch.einsum("bczyx,bzyx->bc", cells.float(), weights)

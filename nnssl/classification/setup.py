"""A fold's fine-tuning as the pretraining's loop takes it: its network and weights, sizes, and values for the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.checkpoints.loading import TransferReport
from nnssl.checkpoints.pretrained import Pretrained, load_pretrained
from nnssl.classification.heads import LinearHead
from nnssl.classification.labels import Target
from nnssl.classification.method import ClassificationConfig, ScanClassification, Values
from nnssl.core.errors import UserError
from nnssl.data.loader import reading
from nnssl.methods.base import to_device
from nnssl.networks.build import backbone_of, build_backbone
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride
from nnssl.networks.recompute import recompute_activations
from nnssl.pretraining.setup import Setup

_MOST_ROWS = 256  # crops that features are standardised by


@dataclass(frozen=True)
class ClassificationSetup(Setup):
    """A fold's fine-tuning.

    Args:
        values: of the cases.
        source: pretraining to start from; None for random weights.
        levels: of the network that form the pyramid.
        device: to train on.
    """

    values: Values = field(kw_only=True)
    source: Pretrained | None = field(kw_only=True)
    levels: Levels = field(kw_only=True)
    device: str = field(kw_only=True)

    @property
    def method_class(self) -> type[ScanClassification]:
        """Not one of the pretext tasks."""
        return ScanClassification

    @property
    def patience(self) -> int | None:
        """As the options say."""
        patience: int | None = getattr(self.config, "patience", None)
        return patience

    @property
    def flag(self) -> str:
        """That of `nnssl_classify`, whose `-o` is its folder."""
        return "-set"

    def build_method(self) -> ScanClassification:
        """The network with the pretraining's weights, and a fresh head on features that are standardised at the start.

        What standardises them comes from one crop of each training case, at most 256; a run that goes on has it in its
        checkpoint.
        """
        built, _ = self.build()
        if self.resume is None and built.head.weight.device.type != "meta":
            self._standardise(built)
        return built

    def build(self) -> tuple[ScanClassification, TransferReport | None]:
        """The network before its features are standardised, and what it took of the pretraining."""
        assert isinstance(self.config, ClassificationConfig)
        backbone = backbone_of(self.resolved, self.levels)
        ScanClassification.check(self.config, backbone)
        built, report = ScanClassification(backbone, self.config, self.values), None
        if self.source is not None and self.resume is None:
            report = load_pretrained(built, self.source, "start from another RUN")
        if self.config.checkpoint_activations is not None:
            recompute_activations(built, self.config.checkpoint_activations)
        return built, report

    @torch.no_grad()
    def _standardise(self, built: ScanClassification) -> None:
        device = torch.device(self.device)
        built.to(device).eval()
        rows = []
        for index in range(min(len(self.train), _MOST_ROWS)):
            folder, case = self.train.folders[self.train.folder_of[index]], str(self.train.names[index])
            with reading(folder, case):
                volume = folder.open(case, index)
                sample = built.sample(volume, built.config, np.random.default_rng([self.config.seed, index]))
            rows.append(built.features(to_device(built.collate([sample]), device, built.host_keys)))
        built.standardise(torch.cat(rows))
        built.train()


def levels_of(source: Pretrained | None, plans: dict[str, Any], configuration: str) -> Levels:
    """The encoder's maps; all that the pretraining used where its network does not hold an encoder by itself."""
    if source is None:
        return "encoder"
    with torch.device("meta"):
        wanted = build_backbone(plans, configuration, "encoder").used_tensors()
    return "encoder" if wanted.keys() <= source.backbone.keys() else source.levels


def patch_of(source: Pretrained | None, resolved: dict[str, Any]) -> Stride:
    """(Z, Y, X) voxels: of the pretraining's crops, or of the plans."""
    given = source.config.get("patch_size") if source is not None else None
    z, y, x = (int(n) for n in given or resolved["patch_size"])
    return z, y, x


def whole_patch(backbone: FeaturePyramid, largest: Sequence[int]) -> Stride | None:
    """The smallest patch that covers volumes and that the network takes; None where it takes one size only."""
    z, y, x = (-(-n // d) * d for n, d in zip(largest, backbone.divisor, strict=True))
    try:
        backbone.check_patch((z, y, x))
    except UserError:
        return None
    return z, y, x


def scaled(target: Target, train: Sequence[str], held_out: Sequence[str]) -> Values:
    """Values of cases for the loss: classes by number, numbers with mean 0 and deviation 1 in the training."""
    mean, deviation = (0.0, 1.0) if target.classes else _scale(target.of(train))
    learned, watched = (tuple(((target.of(cases) - mean) / deviation).tolist()) for cases in (train, held_out))
    return Values(learned, watched, len(target.classes))


def head_of(state: Mapping[str, Tensor], target: Target, train: Sequence[str]) -> LinearHead:
    """The trained layer for features as they are and values of the target, with class scores of zero mean."""
    weight, bias, centre, spread = (
        state[name].double().numpy() for name in ("head.weight", "head.bias", "centre", "spread")
    )
    weights = weight / spread
    added = bias - weights @ centre
    if target.classes:
        return LinearHead(weights - weights.mean(0), added - added.mean(), True)
    mean, deviation = _scale(target.of(train))
    return LinearHead(weights * deviation, added * deviation + mean, False)


def _scale(values: Any) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values)) or 1.0

"""SimCLR: two views of a crop attract each other, those of all other crops repel them (Chen et al., ICML 2020).

`variant=overlap` takes two overlapping crops of every volume for the views of one place, and contrasts volumes.
`variant=intra_scan` takes many crops of every volume, each twice, and contrasts the crops of one scan: what scans and
scanners have in common tells nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from nnssl.core.errors import UserError
from nnssl.methods.base import Batch, Method, Panel, Sample, StepOutput, Volume, at_least
from nnssl.methods.shared.augment import WINDOW_KEYS, WindowIntensityConfig, sample_window_intensity
from nnssl.methods.shared.info_nce import LEAST_TEMPERATURE
from nnssl.methods.shared.overlapping_crops import matched_view_panels, read_crops
from nnssl.methods.simclr.augment import overlapping_starts, random_starts, two_views
from nnssl.methods.simclr.loss import nt_xent
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pyramid import FeaturePyramid, pooled


@dataclass(frozen=True, kw_only=True)
class SimclrConfig(WindowIntensityConfig):
    """Hyper-parameters of SimCLR; [P] stands in a published recipe for volumes, [D] was decided here.

    The defaults are those of `variant=overlap`. The recipe of the other one is `-o variant=intra_scan optimiser=adamw
    learning_rate=1e-4` [P]. Augmentations are ours, with PiMPiC's values.
    """

    num_epochs: int = 1000  # x 250 steps [P]; of 8 volumes, patches of 64^3 [P]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd"] = "sgd"  # [P]
    learning_rate: float = 1e-2  # [P]
    momentum: float = 0.99  # [P]
    weight_decay: float = 3e-5  # [P]
    schedule: Literal["constant", "cosine"] = "cosine"  # [D]; a polynomial [P]
    gradient_clip: float | None = 12.0  # [P]
    variant: Literal["overlap", "intra_scan"] = "overlap"
    least_overlap: float = 0.5  # of the two crops of a volume, with overlap [P]
    temperature: float = 0.5  # with overlap [P]
    intra_scan_crops: int = 15  # of a volume, with intra_scan [P]
    intra_scan_temperature: float = 0.1  # with intra_scan [P]
    exclude_radius_mm: float = 0.0  # crops of one volume with centres this near are no negatives (0: the same place)
    flip_probability: float = 0.5  # of each axis, for every view on its own [D]
    hidden_dim: int = 512  # [D]
    projection_dim: int = 128  # [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "intra_scan_crops", 2)
        for name in ("hidden_dim", "projection_dim"):
            at_least(self, name, 1)
        for name in ("temperature", "intra_scan_temperature"):
            at_least(self, name, LEAST_TEMPERATURE)
        at_least(self, "exclude_radius_mm", 0.0)
        if not 0 < self.least_overlap <= 1:
            raise UserError(f"least_overlap has to be above 0 and at most 1, not {self.least_overlap}")

    @property
    def crops(self) -> int:
        """Crops of a volume, each with two views."""
        return self.intra_scan_crops if self.variant == "intra_scan" else 1


class Simclr(Method):
    """The views of a batch, one vector each, and their contrast.

    A view's vector is made of all encoder levels, averaged over space, so that every part of any encoder learns.
    """

    config_class = SimclrConfig
    levels = "encoder"
    host_keys = frozenset({"hu_affine", "is_ct", *WINDOW_KEYS})
    config: SimclrConfig

    def __init__(self, backbone: FeaturePyramid, config: SimclrConfig) -> None:
        super().__init__(backbone, config)
        self.head = projection_head(sum(backbone.channels), config.hidden_dim, config.projection_dim)

    @classmethod
    def check(cls, config: SimclrConfig, backbone: FeaturePyramid) -> None:
        """As for every method, with the views as the patches of a step; overlapping crops need another volume."""
        backbone.check_patch(config.patch, config.volumes * config.crops * 2)
        if config.volumes * config.crops < 2:
            raise UserError("simclr compares volumes, and a step has a single one; set -o batch_size=2 or more, or "
                            "variant=intra_scan")  # fmt: skip

    @classmethod
    def sample(cls, volume: Volume, config: SimclrConfig, rng: np.random.Generator) -> Sample:
        """Crops of a volume, and how their views are augmented.

        Returns arrays, for C channels, a patch P and K crops of two views:
            crops: (K, 2, C, *P) float32, the plans' normalised values; (K, 1, C, *P) where both views are of one crop.
            sources: (K, 4) volume index and centre of the first view in mm.
            flips: (2K, 3) bool.
            hu_affine, is_ct: (C, 2) and (C,), what the values mean.
            and the parameters of the intensity augmentation.
        """
        if config.variant == "overlap":
            starts = overlapping_starts(rng, volume, config.patch, config.least_overlap)
        else:
            starts = random_starts(rng, volume, config.patch, config.crops)
        patch, views = np.asarray(config.patch), 2 * config.crops
        centres = (starts[:, 0] + (patch - 1) / 2) * volume.spacing
        return {
            "crops": np.stack([read_crops(volume, pair, patch) for pair in starts]),
            "sources": np.column_stack([np.full(len(centres), volume.index), centres]),
            "flips": rng.random((views, 3)) < config.flip_probability,
            "hu_affine": volume.hu_affine,
            "is_ct": volume.is_ct,
            **sample_window_intensity(rng, views, config),
        }

    def augment(self, batch: Batch) -> Batch:
        """`views` (V, K, 2, C, *P): both views of every crop, augmented independently."""
        views = torch.stack([two_views(batch, i) for i in range(len(batch["crops"]))])
        return {"views": views, "sources": batch["sources"]}

    def step(self, batch: Batch) -> StepOutput:
        """NT-Xent of an augmented batch."""
        config, views = self.config, batch["views"]
        vectors = self.head(pooled(self.backbone(views.flatten(0, 2)))).unflatten(0, views.shape[:3])
        within = config.variant == "intra_scan"
        temperature = config.intra_scan_temperature if within else config.temperature
        loss = nt_xent(vectors, temperature, within, batch["sources"], config.exclude_radius_mm)
        first, second = l2_normalise(vectors.detach()).flatten(0, 1).unbind(1)
        terms = {"similarity": (first * second).sum(1).mean()}
        return StepOutput(loss, terms, vectors.detach().flatten(0, 2), (first, second))

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Both views of up to four crops."""
        return matched_view_panels(batch["views"].flatten(0, 1).numpy(), np.zeros((0, 2, 4)))

"""SimCLR: the two views of a crop attract each other and repel the views of all other crops (Chen et al., ICML 2020).

`variant=overlap` takes two overlapping crops of every volume as the two views, and contrasts volumes.
`variant=intra_scan` takes two views of each of many crops of a volume, and contrasts the crops of one scan, where
differences between scans and scanners are no help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.geometry import random_crop_start
from nnssl.methods.base import Batch, Method, Sample, StepOutput, Volume, at_least, share
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.methods.shared.augment import (
    WINDOW_KEYS,
    WindowIntensityConfig,
    apply_window_intensity,
    sample_window_intensity,
    unit_noise,
)
from nnssl.methods.shared.info_nce import LEAST_TEMPERATURE, info_nce
from nnssl.methods.shared.overlapping_crops import boxes_of_crops, matched_view_panels, read_crops, sample_pair
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pyramid import FeaturePyramid, pooled

_DRAWS = 1024  # attempts to draw the second crop, of which every thirtieth overlaps the first by half


@dataclass(frozen=True, kw_only=True)
class SimclrConfig(WindowIntensityConfig):
    """Hyper-parameters of SimCLR; [P] is from a published recipe for volumes, [D] our decision.

    The defaults are for `variant=overlap`; for the other one, type `-o variant=intra_scan optimiser=adamw
    learning_rate=1e-4` [P]. The augmentations are ours, with PiMPiC's values.
    """

    num_epochs: int = 1000  # x 250 steps, of 8 volumes with patches of 64^3 [P]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd"] = "sgd"  # [P]
    learning_rate: float = 1e-2  # [P]
    momentum: float = 0.99  # [P]
    weight_decay: float = 3e-5  # [P]
    schedule: Literal["constant", "cosine"] = "cosine"  # [D]; a polynomial [P]
    gradient_clip: float | None = 12.0  # [P]
    variant: Literal["overlap", "intra_scan"] = "overlap"
    least_overlap: float = 0.5  # of the two crops of a volume, for overlap [P]
    temperature: float = 0.5  # for overlap [P]
    intra_scan_crops: int = 15  # per volume, for intra_scan [P]
    intra_scan_temperature: float = 0.1  # for intra_scan [P]
    exclude_radius_mm: float = 0.0  # crops of a volume with centres within this distance (0: the same) do not repel
    flip_probability: float = 0.5  # of each axis, independently for every view [D]
    hidden_dim: int = 512  # [D]
    projection_dim: int = 128  # [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "intra_scan_crops")
        at_least(self, 1, "hidden_dim", "projection_dim")
        at_least(self, LEAST_TEMPERATURE, "temperature", "intra_scan_temperature")
        at_least(self, 0, "exclude_radius_mm")
        share(self, "least_overlap")

    @property
    def crops(self) -> int:
        """Crops of a volume, each with two views."""
        return self.intra_scan_crops if self.variant == "intra_scan" else 1


class Simclr(Method):
    """The views of a batch, one vector each, and their contrast.

    Every part of any encoder learns, because a view's vector comes from the spatial means of all encoder levels.
    """

    config_class = SimclrConfig
    learns_from = "two views of a crop, against those of other crops"
    paper = (
        "Chen, T., Kornblith, S., Norouzi, M., & Hinton, G. (2020). A Simple Framework for Contrastive Learning of "
        "Visual Representations. ICML."
    )
    levels = "encoder"
    collapse_cause = "few crops a step (-o batch_size=...) or an unfit temperature (-o temperature=...)"
    host_keys = frozenset({"starts", "hu_affine", "is_ct", *WINDOW_KEYS})
    config: SimclrConfig

    def __init__(self, backbone: FeaturePyramid, config: SimclrConfig) -> None:
        super().__init__(backbone, config)
        self.head = projection_head(sum(backbone.channels), config.hidden_dim, config.projection_dim)

    @classmethod
    def check(cls, config: SimclrConfig, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse a single crop without negatives."""
        super().check(config, backbone)
        if config.volumes * config.crops < 2:
            raise UserError("simclr compares volumes and a step has only one; set -o batch_size=2 or more, or "
                            "variant=intra_scan")  # fmt: skip

    @classmethod
    def crops_per_pass(cls, config: SimclrConfig) -> int:
        """All views of a step."""
        return config.volumes * config.crops * 2

    @classmethod
    def sample(cls, volume: Volume, config: SimclrConfig, rng: np.random.Generator) -> Sample:
        """Draw crops of a volume, and the augmentation of their views.

        Returns arrays, for C channels, a patch P and K crops with two views:
            crops: (K, 2, C, *P) float32, the plans' normalised values; (K, 1, C, *P) if both views share a crop.
            starts: (K, 2, 3) first voxels of the crops in the volume; (K, 1, 3) if both views share a crop.
            sources: (K, 4) volume index and centre of the first view in mm.
            flips: (2K, 3) bool.
            hu_affine, is_ct: (C, 2) and (C,), see `Volume`.
            and the parameters of the intensity augmentation.
        """
        patch, size, views = np.asarray(config.patch), volume.size, 2 * config.crops
        if config.variant == "overlap":
            anchor = volume.random_body_voxel(rng)
            starts = sample_pair(rng, anchor, size, patch, 0.0, config.least_overlap, _DRAWS)[0][None]
        else:
            crops = [random_crop_start(rng, volume.random_body_voxel(rng), patch, size) for _ in range(config.crops)]
            starts = np.stack(crops)[:, None]
        centres = (starts[:, 0] + (patch - 1) / 2) * volume.spacing
        return {
            "crops": np.stack([read_crops(volume, pair, patch) for pair in starts]),
            "starts": starts,
            "sources": np.column_stack([np.full(len(centres), volume.index), centres]),
            "flips": rng.random((views, 3)) < config.flip_probability,
            "hu_affine": volume.hu_affine,
            "is_ct": volume.is_ct,
            **sample_window_intensity(rng, views, config),
        }

    def augment(self, batch: Batch) -> Batch:
        """Make `views` (V, K, 2, C, *P): both views of every crop, augmented independently."""
        views = torch.stack([two_views(batch, i) for i in range(len(batch["crops"]))])
        return {"views": views, "starts": batch["starts"], "sources": batch["sources"]}

    def step(self, batch: Batch) -> StepOutput:
        """NT-Xent of an augmented batch."""
        config, views = self.config, batch["views"]
        means = in_parts(lambda x: pooled(self.backbone(x)), config.accumulate, views.flatten(0, 2))
        vectors = self.head(means).unflatten(0, views.shape[:3])
        within = config.variant == "intra_scan"
        temperature = config.intra_scan_temperature if within else config.temperature
        loss = nt_xent(vectors, temperature, within, batch["sources"], config.exclude_radius_mm)
        first, second = l2_normalise(vectors.detach()).flatten(0, 1).unbind(1)
        terms = {"similarity": (first * second).sum(1).mean()}
        return StepOutput(loss, terms, vectors.detach().flatten(0, 2), (first, second))

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """Both crops of each volume; none where both views are of one crop."""
        return boxes_of_crops(batch["starts"][:, 0], config.patch) if config.variant == "overlap" else None

    @classmethod
    def whereabouts(cls, batch: Batch, config: Any) -> list[Whereabouts]:
        """Both crops of each volume, or those that give two views each."""
        boxes = boxes_of_crops(batch["starts"], config.patch).flatten(1, 2).numpy()
        return [Whereabouts(i, own, range(len(own))) for i, own in enumerate(boxes)]

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Both views of up to four crops."""
        return matched_view_panels(batch["views"].flatten(0, 1).numpy(), np.zeros((0, 2, 4)))


@torch.no_grad()
def two_views(batch: Batch, i: int) -> Tensor:
    """The views (K, 2, C, *P) of volume i, each flipped and with noise, gamma and brightness of its own.

    Crops (K, 1, C, *P) give two views each.
    """
    crops, flips = batch["crops"][i], batch["flips"][i]
    views = crops.expand(-1, 2, *crops.shape[2:]).flatten(0, 1)
    for axis in range(3):
        views = torch.where(flips[:, axis, None, None, None, None], views.flip(axis + 2), views)
    noise = unit_noise(int(batch["noise_seed"][i]), views.shape, views.device)
    parameters = {key: batch[key][i] for key in WINDOW_KEYS}
    changed = apply_window_intensity(views, parameters, noise, batch["hu_affine"][i], batch["is_ct"][i])
    return changed.unflatten(0, (-1, 2))


def nt_xent(
    vectors: Tensor, temperature: float, within_scans: bool, sources: Tensor, exclude_radius_mm: float = 0.0
) -> Tensor:
    """Return the mean over all views of

        -log e^{<z, z'>/tau} / sum_k e^{<z, z_k>/tau},

    where z' is the other view of the same crop and k runs over all other views, of all scans and processes or of the
    same scan (Chen et al., ICML 2020, eq. 1). The loss of all scans is the MEAN of this over the processes.

    Args:
        vectors: (V, K, 2, d) of both views of K crops of each of V scans, need not be normalised.
        temperature: tau.
        within_scans: take negatives from the same scan only.
        sources: (V, K, 4) [volume, z, y, x] of the crops' centres, in mm.
        exclude_radius_mm: crops of one scan with centres within this distance are not negatives of each other.

    Returns:
        () loss, attached to the graph.
    """
    if not within_scans:
        first, second = vectors.flatten(0, 1).unbind(1)
        return info_nce(first, second, temperature, "mean", sources.flatten(0, 1), exclude_radius_mm)
    losses = [
        info_nce(views[:, 0], views[:, 1], temperature, "mean", places, exclude_radius_mm, across_ranks=False)
        for views, places in zip(vectors, sources, strict=True)
    ]
    return torch.stack(losses).mean()

"""vox2vec: voxel-level contrastive learning on a feature pyramid (Goncharov et al., MICCAI 2023).

Two crops of a volume share 1,024 body voxels. The representation of a voxel is the concatenation of all pyramid levels
at its position. After a projection head, the two representations of one voxel attract each other and repel those of all
other voxels of the batch (InfoNCE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.core.errors import UserError
from nnssl.core.geometry import random_crop_start
from nnssl.methods.base import Batch, Method, Sample, StepOutput, Volume, at_least, formerly_fixed
from nnssl.methods.panel import Panel
from nnssl.methods.shared.info_nce import LEAST_TEMPERATURE, info_nce
from nnssl.methods.shared.overlapping_crops import boxes_of_crops, collate_matched, matched_view_panels, read_crops
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.vox2vec.augment import INTENSITY_KEYS, IntensityConfig, apply_intensity, sample_intensity
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pyramid import FeaturePyramid, gather_voxels


@dataclass(frozen=True, kw_only=True)
class Vox2vecConfig(IntensityConfig):
    """Hyper-parameters of vox2vec; [P] is from the paper, [C] from the authors' code."""

    num_epochs: int = 1000  # x 100 steps = 100,000 steps [P]
    steps_per_epoch: int = 100  # [C]
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"  # [P]
    learning_rate: float = 3e-4  # [P]; no decay, no schedule, no warm-up
    gradient_clip: float | None = 1.0  # [C]
    voxels_per_pair: int = 1024  # largest number of matched voxels [C]; 1,000 [P]
    temperature: float = 0.1  # [C]
    projection_dim: int = 128  # [P]
    levels: Literal["all", "finest"] = formerly_fixed("all")  # contrasted; finest: the paper's vox2vec-UNet [P]
    reduction: Literal["mean", "sum"] = "mean"  # over the 2N terms: mean [C], sum [P]
    views_from_one_volume: bool = False  # all pairs of a step from one volume [C]; n different volumes [P]
    joint_batch_norm: bool = False  # True: one forward pass and one set of batch statistics for both views
    exclude_radius_mm: float = 0.0  # voxels within this distance in a volume are not negatives (0: the same voxel)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "voxels_per_pair", "projection_dim")
        at_least(self, 0, "exclude_radius_mm")
        at_least(self, LEAST_TEMPERATURE, "temperature")


class Vox2vec(Method):
    """The two views of a batch, their voxel representations and the contrastive loss."""

    config_class = Vox2vecConfig
    learns_from = "the same voxel in two crops, against all other voxels of the batch"
    paper = (
        "Goncharov, M., Soboleva, V., Kurmukov, A., Pisov, M., & Belyaev, M. (2023). vox2vec: A Framework for "
        "Self-supervised Contrastive Learning of Voxel-Level Representations in Medical Images. MICCAI."
    )
    levels = "decoder"
    collapse_cause = "few volumes a step (-o batch_size=...) or an unfit temperature (-o temperature=...)"
    host_keys = frozenset({"counts", "starts", "hu_affine", "is_ct", *INTENSITY_KEYS})
    config: Vox2vecConfig

    def __init__(self, backbone: FeaturePyramid, config: Vox2vecConfig) -> None:
        super().__init__(backbone, config)
        features = sum(backbone.channels[: self._shown])
        self.head = projection_head(features, features, config.projection_dim)

    @classmethod
    def check(cls, config: Vox2vecConfig, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse a single voxel per step, which batch normalisation cannot take."""
        super().check(config, backbone)
        if config.volumes * config.voxels_per_pair < 2:
            raise UserError("one voxel per step is too few for batch normalisation; set -o batch_size=2 or "
                            "voxels_per_pair=2 or more")  # fmt: skip

    @classmethod
    def volumes_per_step(cls, config: Vox2vecConfig) -> int:
        """One with `views_from_one_volume`, else one per pair."""
        return 1 if config.views_from_one_volume else super().volumes_per_step(config)

    @classmethod
    def sample(cls, volume: Volume, config: Vox2vecConfig, rng: np.random.Generator) -> Sample:
        """Draw two crops around one body voxel, and body voxels inside both (methods.md 1.1).

        Returns arrays, for C channels, a patch P and M matched voxels:
            crops: (2, C, *P) float32, the plans' normalised values.
            starts: (2, 3) first voxels of the crops in the volume.
            voxels: (M, 2, 3) positions in the first and in the second crop.
            source: (M, 4) volume index and position in mm in the volume.
            hu_affine, is_ct: (2, C, 2) and (2, C), see `Volume`.
            and the parameters of the intensity augmentation, each with leading dimension 2.
        """
        patch = np.asarray(config.patch)
        anchor = volume.random_body_voxel(rng)
        starts = np.stack([random_crop_start(rng, anchor, patch, volume.size) for _ in range(2)])
        start, stop = np.maximum(starts.max(0), 0), np.minimum(starts.min(0) + patch, volume.size)
        candidates = np.flatnonzero(volume.read_body(start, stop))
        if len(candidates) > config.voxels_per_pair:
            candidates = rng.choice(candidates, config.voxels_per_pair, replace=False, shuffle=False)
        position = np.stack(np.unravel_index(candidates, tuple(stop - start)), axis=1) + start
        return {
            "crops": read_crops(volume, starts, patch),
            "starts": starts,
            "voxels": position[:, None] - starts,
            "source": np.column_stack([np.full(len(position), volume.index), position * volume.spacing]),
            "hu_affine": np.stack([volume.hu_affine] * 2),
            "is_ct": np.stack([volume.is_ct] * 2),
            **sample_intensity(rng, 2, config),
        }

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """See `collate_matched`."""
        return collate_matched(samples, "voxels", "source")

    def augment(self, batch: Batch) -> Batch:
        """Augment the intensities of every view independently; `crops` keeps its shape (B, 2, C, *P)."""
        crops = batch["crops"]
        affine, is_ct = batch["hu_affine"].flatten(0, 1), batch["is_ct"].flatten(0, 1)
        parameters = {key: batch[key].flatten(0, 1) for key in INTENSITY_KEYS}
        detail = self.config.sharpen_detail_sigma_voxels
        augmented = apply_intensity(crops.flatten(0, 1), parameters, affine, is_ct, detail)
        kept = {key: batch[key] for key in ("starts", "voxels", "source", "counts")}
        return {"crops": augmented.view_as(crops), **kept}

    def step(self, batch: Batch) -> StepOutput:
        """InfoNCE of the matched voxels of an augmented batch (paper, section 3.3)."""
        config = self.config
        crops, voxels, counts = batch["crops"], batch["voxels"], batch["counts"]
        if config.joint_batch_norm:
            second = voxels[:, 1] + voxels.new_tensor([len(crops), 0, 0, 0])
            both = torch.cat([crops[:, 0], crops[:, 1]])
            h1, h2 = self.embed(both, torch.cat([voxels[:, 0], second]), counts.repeat(2)).chunk(2)
        else:
            h1, h2 = (self.embed(crops[:, k], voxels[:, k], counts) for k in range(2))
        loss = info_nce(h1, h2, config.temperature, config.reduction, batch["source"], config.exclude_radius_mm)
        with torch.no_grad():
            similarity = (l2_normalise(h1.float()) * l2_normalise(h2.float())).sum(1).mean()
        terms = {"similarity": similarity, "pairs": loss.new_full((), len(voxels))}
        return StepOutput(loss, terms, h1.detach(), (h1.detach(), h2.detach()))

    def embed(self, crops: Tensor, voxels: Tensor, counts: Tensor) -> Tensor:
        """Projected representations (N, d) of voxels (N, 4) [crop, z, y, x], counts (B,) in each crop (B, C, *P)."""
        # the head, whose batch normalisation takes all voxels as its rows, comes after the parts
        features = in_parts(self._features, self.config.accumulate, crops, points=(voxels, counts))
        embedding: Tensor = self.head(features)
        return embedding

    def _features(self, crops: Tensor, voxels: Tensor) -> Tensor:
        """Cells (N, sum of C_l) of all shown levels that contain the voxels."""
        pyramid, strides = self.backbone(crops)[: self._shown], self.backbone.strides[: self._shown]
        return gather_voxels(pyramid, strides, voxels)

    @property
    def _shown(self) -> int | None:
        """Number of levels, finest first, that voxels are represented by; None for all."""
        return 1 if self.config.levels == "finest" else None

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """Both crops of each volume."""
        return boxes_of_crops(batch["starts"], config.patch)

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Both crops of up to four pairs, with eight of the matched voxels."""
        return matched_view_panels(batch["crops"].numpy(), batch["voxels"].numpy())


def vox2vec_segmentation_loss(logits: Tensor, target: Tensor, roi: Tensor | None = None) -> Tensor:
    """Loss of the probes and fine-tuning: mean binary cross-entropy plus soft Dice loss inside the body (section 3.4).

    The Dice loss is the mean over items and classes of 1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1), p = sigmoid(logits);
    for an empty roi it is 1 without gradient. Computed in float32 (float64 for float64 logits) under autocast too.

    Args:
        logits: (B, C, ...) one binary decision per class.
        target: (B, C, ...) 0 or 1, any dtype; classes may overlap.
        roi: (B, ...) true inside the body; None takes every voxel.

    Returns:
        () loss.

    Raises:
        ValueError: shapes do not fit.
    """
    if logits.ndim < 3 or target.shape != logits.shape:
        raise ValueError(f"logits and target must be (B, C, ...), got {tuple(logits.shape)} and {tuple(target.shape)}")
    if roi is not None and roi.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"roi must have the shape of logits without the class axis, got {tuple(roi.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        inside = torch.ones_like(logits[:, :1]) if roi is None else roi[:, None].to(logits.dtype)
        target = target.to(logits.dtype)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside
        voxels = tuple(range(2, logits.ndim))
        probability, truth = logits.sigmoid() * inside, target * inside
        overlap = (probability * truth).sum(voxels)
        squares = probability.square().sum(voxels) + truth.square().sum(voxels)
        # The mean over roi voxels and classes; an empty roi divides its 0 by 1.
        mean = cross_entropy.sum() / (inside.sum() * logits.shape[1]).clamp_min(1)
        return mean + (1 - 2 * overlap / (squares + 1)).mean()

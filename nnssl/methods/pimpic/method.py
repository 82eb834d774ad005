"""PiMPiC: patch matching and patch contrast by overlap (PiM and PiC), for the encoder of a U-Net.

All patches of a volume are near one anchor. PiM: the cosine of two patches' embeddings should equal the share of their
volume that they have in common. PiC: the representations of the common part in two overlapping patches attract each
other, and repel those of the rest of either patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.core.distributed import gather_rows, world_size
from nnssl.core.errors import UserError
from nnssl.core.geometry import overlaps_of_patches, random_starts_around
from nnssl.methods.base import Batch, Method, Sample, StepOutput, Volume, at_least, between, positive
from nnssl.methods.panel import Panel
from nnssl.methods.pimpic.loss import pair_distances, pic_loss, pim_loss, region_averages
from nnssl.methods.pimpic.panels import crop_panels
from nnssl.methods.shared.augment import (
    WINDOW_KEYS,
    WindowIntensityConfig,
    apply_window_intensity,
    sample_window_intensity,
    unit_noise,
)
from nnssl.methods.shared.overlapping_crops import boxes_of_crops, collate_regions, cut_crops, read_region
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pyramid import FeaturePyramid

_LEVELS = 3  # PiM takes the last three encoder levels, PiC the first three [P] [C]


@dataclass(frozen=True, kw_only=True)
class PimpicConfig(WindowIntensityConfig):
    """Hyper-parameters of PiMPiC; [P] is from the paper, [C] from the authors' code, [D] ours (methods.md 3)."""

    num_epochs: int = 200  # x 100 steps = 20,000 steps [P]; the code takes 500 passes over the training set
    steps_per_epoch: int = 100
    batch_size: int | None = 1  # volumes [C], not patches: all patches of a step are near one anchor
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"  # [P] [C]
    learning_rate: float = 1e-5  # [P] [C]; no decay, no schedule, no warm-up. 1e-4 is a reasonable second setting [D]
    gradient_clip: float | None = 1.0  # [D]: the gradient of PiM grows to 1e6 just below D = 1; the code has no clip
    crops: int = 32  # patches per volume [P] [C]
    spread: float = 0.8  # largest distance of a patch from the anchor, as a share of its side: 51 voxels for 64 [C]
    terms: Literal["pimpic", "pim", "pic"] = "pimpic"  # their sum with equal weights [P] [C], or one of them
    include_diagonal: bool = False  # PiM over the whole matrix [C]; pairs i < j [P]
    d_extension: bool = False  # PiM continues as a straight line for D > 0.95 [D]; False: clamped at D = 1 [C]
    objective: Literal["code", "paper"] = "code"  # form of PiC: five terms, positive doubled [C]; six terms [P]
    temperature: float = 1.0  # tau of PiC [P] [C]
    least_overlap: float = 0.01  # pairs with a smaller common share have no PiC term [C]
    across_volumes: bool = False  # PiM with S = 0 for patches of different volumes, although anatomy is similar
    shared_noise: bool = False  # one noise field per volume and nothing else [C]; False: independent augmentation [D]
    pim_hidden_dim: int = 256  # [C]
    pic_hidden_dim: int = 128  # [C]
    projection_dim: int = 128  # of both heads [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "crops")
        at_least(self, 1, "pim_hidden_dim", "pic_hidden_dim", "projection_dim")
        positive(self, "temperature")
        between(self, 0, 1, "spread", "least_overlap")


class Pimpic(Method):
    """The patches of a batch, their two kinds of representations and both losses."""

    config_class = PimpicConfig
    learns_from = "how much the crops of one volume overlap, and which regions they share"
    paper = (
        "Karimzadeh, R., et al. (2025). PiMPiC: An Overlap-Aware Contrastive Learning Framework for 3D Patch-Based "
        "Medical Image Segmentation. MICCAI workshop on Data Engineering in Medical Imaging."
    )
    levels = "encoder"
    collapse_cause = "patches of one volume a step, which look alike (-o crops=... spread=...), or a high learning_rate"
    host_keys = frozenset({"starts", "corners", "region_sizes", "hu_affine", "is_ct", *WINDOW_KEYS})
    config: PimpicConfig

    def __init__(self, backbone: FeaturePyramid, config: PimpicConfig) -> None:
        super().__init__(backbone, config)
        patch = config.patch
        if config.terms != "pic":
            cells = [prod(-(-p // s) for p, s in zip(patch, stride, strict=True)) for stride in backbone.strides]
            self.pim_head = projection_head(sum(cells[-_LEVELS:]), config.pim_hidden_dim, config.projection_dim)
        if config.terms != "pim":
            features = sum(backbone.channels[:_LEVELS])
            self.pic_head = projection_head(features, config.pic_hidden_dim, config.projection_dim)

    @classmethod
    def check(cls, config: PimpicConfig, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse a network with too few levels."""
        super().check(config, backbone)
        if len(backbone.channels) < _LEVELS:
            raise UserError(f"PiMPiC takes the first and the last {_LEVELS} levels of the encoder, and this network "
                            f"has {len(backbone.channels)}; choose plans with {_LEVELS} or more stages with "
                            f"-p")  # fmt: skip

    @classmethod
    def crops_per_pass(cls, config: PimpicConfig) -> int:
        """All crops of all volumes."""
        return config.volumes * config.crops

    @classmethod
    def sample(cls, volume: Volume, config: PimpicConfig, rng: np.random.Generator) -> Sample:
        """Draw patches around an anchor, with the common part of any two (methods.md 3.1).

        A volume smaller than the patch is padded with zeros.

        Returns arrays, for C channels, a patch P, N crops and M pairs that overlap enough:
            region, corners: the crops, float32, the plans' normalised values, see `read_region`.
            starts: (N, 3) first voxels in the volume.
            anchor: (3,) first voxel of the anchor patch.
            overlap: (N, N) float64, the common share S.
            boxes: (N, N, 2, 3), [i, j] the common part of i and j, in voxels of crop i.
            pairs: (M, 2), i < j, for PiC.
            hu_affine, is_ct: (C, 2) and (C,), see `Volume`.
            and the parameters of the intensity augmentation.
        """
        patch = np.asarray(config.patch)
        reach = (config.spread * patch + 1e-6).astype(np.int64)
        anchor, starts = random_starts_around(rng, volume.size, patch, config.crops, reach)
        overlap, boxes = overlaps_of_patches(starts, patch)
        enough = (overlap >= config.least_overlap) & (overlap > 0)
        return {
            **read_region(volume, starts, patch),
            "starts": starts,
            "anchor": anchor,
            "overlap": overlap,
            "boxes": boxes,
            "pairs": np.argwhere(np.triu(enough, k=1)),
            "hu_affine": volume.hu_affine,
            "is_ct": volume.is_ct,
            **sample_window_intensity(rng, config.crops, config, noise_only=config.shared_noise),
        }

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Stack samples, but concatenate their regions, and their pairs, with the sample's number first: (M, 3).

        With `pair_weights` (M,) float64 the weighted sum of PiC's terms is the mean over the volumes of their means,
        with 0 for a volume without a pair: the mean over processes then is the loss of all volumes.
        """
        joined = ("pairs", "region")
        batch = {**collate_regions(samples),
                 **Method.collate([{k: v for k, v in s.items() if k not in joined} for s in samples])}  # fmt: skip
        counts = [len(s["pairs"]) for s in samples]
        batch["pairs"] = torch.from_numpy(
            np.concatenate([np.insert(s["pairs"], 0, i, 1) for i, s in enumerate(samples)])
        )
        weights = [np.full(count, 1 / (count * len(samples))) for count in counts if count]
        batch["pair_weights"] = torch.from_numpy(np.concatenate([np.empty(0), *weights]))
        return batch

    def augment(self, batch: Batch) -> Batch:
        """Cut `crops` (V, N, C, *P) out of the regions; add noise, gamma and brightness to each independently.

        The authors add one noise field to the volume before they cut it (`shared_noise`). The common part of two
        patches is then identical voxel by voxel, and PiC's positives differ only by what convolutions see around them.
        The default follows the paper's "intensity-based augmentations": positives with different intensities must agree
        on anatomy.
        """
        crops = cut_crops(batch, self.config.patch)
        crops = torch.stack([self._augmented(crops[i], batch, i) for i in range(len(crops))])
        kept = ("starts", "anchor", "overlap", "boxes", "pairs", "pair_weights")
        return {"crops": crops, **{key: batch[key] for key in kept}}

    def _augmented(self, crops: Tensor, batch: Batch, i: int) -> Tensor:
        """The crops (N, C, *P) of volume i, augmented."""
        seed = int(batch["noise_seed"][i])
        if self.config.shared_noise:
            starts = (batch["starts"][i] - batch["starts"][i].amin(0)).tolist()
            patch = crops.shape[2:]
            size = [max(s[axis] for s in starts) + patch[axis] for axis in range(3)]
            field = unit_noise(seed, (crops.shape[1], *size), crops.device)
            noise = torch.stack([_cut(field, s, patch) for s in starts])
        else:
            noise = unit_noise(seed, crops.shape, crops.device)
        parameters = {key: batch[key][i] for key in WINDOW_KEYS}
        return apply_window_intensity(crops, parameters, noise, batch["hu_affine"][i], batch["is_ct"][i])

    def step(self, batch: Batch) -> StepOutput:
        """PiM and PiC of an augmented batch (paper, eq. 1 and 2), as `terms` says."""
        boxes = batch["boxes"]
        features = in_parts(self._features, self.config.accumulate, batch["crops"].flatten(0, 1), boxes.flatten(0, 1))
        regions, means, idle = features
        terms: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        pairs: tuple[Tensor, Tensor] | None = None  # PiM has none: its targets are similarities
        with torch.autocast(batch["crops"].device.type, enabled=False):
            if self.config.terms != "pim":
                rows = self.pic_rows(regions.unflatten(0, boxes.shape[:2]), batch["pairs"])
                weights = batch["pair_weights"].to(rows.dtype)
                losses.append(pic_loss(rows, self.config.temperature, self.config.objective, weights))
                terms["pic"], embeddings = losses[-1].detach(), rows[:, :2].flatten(0, 1)
                pairs = (rows[:, 0].detach(), rows[:, 1].detach())  # the common part in either patch
            if self.config.terms != "pic":
                embeddings = self.pim_embeddings(means)
                distance = self._pim_distances(embeddings, batch["overlap"])
                losses.append(pim_loss(distance, self.config.d_extension))
                terms["pim"], terms["clamped"] = losses[-1].detach(), (distance.detach() > 1).float().mean()
            else:
                losses.append(idle.sum() + losses[0] * 0)
        terms["pairs"] = embeddings.new_full((), len(batch["pairs"]))
        return StepOutput(torch.stack(losses).sum(), terms, embeddings.detach(), pairs)

    def _features(self, crops: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What PiC and PiM compare of crops (M, C, *P), and zeros (M,) that hold on to the other levels."""
        pyramid, nothing = self.backbone(crops), crops.new_empty(len(crops), 0)
        with torch.autocast(crops.device.type, enabled=False):
            regions = nothing if self.config.terms == "pim" else self.regions(pyramid, boxes)
            if self.config.terms != "pic":
                return regions, channel_means(pyramid), nothing
            # All parameters must take part: DistributedDataParallel waits for the gradient of each.
            idle = [level.flatten(1).mean(1) * 0 for level in pyramid[_LEVELS:]]
            return regions, nothing, sum(idle, regions.new_zeros(len(crops)))

    def pim_embeddings(self, means: Tensor) -> Tensor:
        """Unit vectors (K, d) of K patches, from `channel_means`."""
        return l2_normalise(self.pim_head(means))

    def _pim_distances(self, embeddings: Tensor, overlap: Tensor) -> Tensor:
        """|S - C| of the pairs of each volume, or of all pairs of all processes, from (V N, d) and (V, N, N)."""
        if self.config.across_volumes:
            embeddings = gather_rows(embeddings, [len(embeddings)] * world_size())[None]
            overlap = torch.block_diag(*gather_rows(overlap, [len(overlap)] * world_size()))[None]
        else:
            embeddings = embeddings.unflatten(0, overlap.shape[:2])
        return pair_distances(embeddings, overlap.to(embeddings.dtype), self.config.include_diagonal)

    def regions(self, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Averages (K, N, 2, features) of K patches inside and outside of boxes (K, N, 2, 3), over the first levels."""
        levels = zip(pyramid[:_LEVELS], self.backbone.strides, strict=False)
        return torch.cat([region_averages(level, stride, boxes) for level, stride in levels], dim=-1)

    def pic_rows(self, regions: Tensor, pairs: Tensor) -> Tensor:
        """Unit vectors (M, 4, d) of M pairs: overlap in either patch, rest of either patch (methods.md 3.2).

        Args:
            regions: (V, N, N, 2, features) of `regions`.
            pairs: (M, 3) [volume, i, j].
        """
        volume, i, j = pairs.unbind(1)
        features = torch.stack([regions[volume, i, j], regions[volume, j, i]], dim=2).flatten(1, 2)
        # All rows of all pairs go through the batch normalisation together.
        return l2_normalise(self.pic_head(features.flatten(0, 1))).unflatten(0, (len(pairs), 4))

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """All crops of each volume."""
        return boxes_of_crops(batch["starts"], config.patch)

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """For up to two volumes: a slice with the boxes of its crops, then three pairs of crops with their overlap."""
        return crop_panels(batch)


def channel_means(pyramid: Sequence[Tensor]) -> Tensor:
    """The means over the channels of the last levels (K, C_l, Z_l, Y_l, X_l), flattened: (K, cells)."""
    last = pyramid[-_LEVELS:]
    return torch.cat([x.mean(1, dtype=torch.promote_types(x.dtype, torch.float32)).flatten(1) for x in last], dim=1)


def _cut(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box of the last three axes."""
    (z, y, x_start), (depth, height, width) = start, size
    return x[..., z : z + depth, y : y + height, x_start : x_start + width]

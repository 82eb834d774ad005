"""VoCo: contrastive position prediction on volumes (Wu et al., CVPR 2024).

Base crops tile the body. The similarity of a random crop to each base should equal their overlap, and the
bases should differ from each other. The representation of a crop is the spatial mean of all encoder levels,
concatenated, after a projection head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.core.geometry import Integers
from nnssl.methods.base import (
    Batch,
    Method,
    MethodConfig,
    Sample,
    StepOutput,
    Volume,
    at_least,
    below_one,
    between,
    formerly,
    formerly_fixed,
    positive,
)
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.voco.augment import (
    base_starts,
    overlap_labels,
    place_slab,
    random_crop_starts,
    resized_crops,
    sample_orientations,
    sample_shifts,
    tile_body,
)
from nnssl.methods.voco.loss import code_terms, paper_terms
from nnssl.networks.contrastive import MomentumNetworks, begin_equal, projection_head
from nnssl.networks.pyramid import FeaturePyramid, pooled

_SHOWN = 4  # volumes of `views.png`, and at most half as many crops of each


@dataclass(frozen=True, kw_only=True)
class VoCoConfig(MethodConfig):
    """Hyper-parameters of VoCo; [P] is from the paper (table 9), [C] from the authors' code (methods.md 2)."""

    num_epochs: int = 1000  # x 250 steps = 250,000 steps [C]; 100,000 [P]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"  # [P] [C]
    amsgrad: bool = True  # [C]
    learning_rate: float = 1e-4  # [C]; 1e-3 [P]
    weight_decay: float = 1e-2  # [P] [C]
    schedule: Literal["constant", "cosine"] = "cosine"  # [P] [C]
    warmup_steps: int = 5000  # [C]; 100 [P]. A short run needs fewer.
    gradient_clip: float | None = 1.0  # the gradient of the logarithm grows to 1e6; the code clips only without AMP
    crops: int = 2  # random crops per volume [C]; 4 [P]
    grid: tuple[int, int, int] = (1, 4, 4)  # bases along (Z, Y, X): 4 x 4 x 1 [P] [C]
    # The body is resized to at most this size (z, y, x), stored once and read by every sample [C]; none: as it is.
    body_size: tuple[int, int, int] | None = formerly(None, (96, 384, 384))
    base_size: tuple[int, int, int] | None = None  # (Z, Y, X) voxels: bases tile a slab; None: they tile the body [P]
    base_scale: float | None = None  # the same for bases in voxels per voxel of the patch
    shrink_bases: bool = True  # smaller bases if the body is smaller than the slab; False: pad the slab
    align_corners: bool = formerly(False, True)  # of the crops' resizing to the patch [C]
    # A short run needs 0 for both: few pairs of crop and base keep a common orientation (docs/methods.md, measured).
    flip_probability: float = 0.2  # of each axis, independently for every crop and base [C]
    turn_probability: float = 0.2  # of quarter turns in the plane [C]
    shift_probability: float = formerly_fixed(0.1)  # of a shift in intensity [C]
    shift_hu: float = formerly_fixed(42.5)  # largest, either way: a tenth of the window [C]
    objective: Literal["code", "paper"] = "code"  # the paper's has no teacher
    reg_detach: bool = True  # the code's regulariser gives the later base of a pair no gradient
    regulariser_weight: float = 1.0  # lambda [P] [C]
    teacher_momentum: float = 0.9  # [C]
    projection_dim: int = 2048  # of all three layers [P] [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "crops", "grid", "base_size", "projection_dim")
        at_least(self, 0, "regulariser_weight")
        positive(self, "base_scale")
        below_one(self, "teacher_momentum")
        between(self, 0, 10_000, "shift_hu")
        between(self, 1, 10_000, "body_size")
        if prod(self.grid) < 2:
            raise UserError("one base cannot tell positions apart; set a larger grid (Z,Y,X) such as -o grid=1,4,4")

    def slab_base(self) -> tuple[int, int, int] | None:
        """Size (Z, Y, X) of the bases of a slab in voxels, before they shrink to the body; None: they tile the body.

        A `base_scale` needs a `patch_size`.
        """
        if self.base_size is not None or self.base_scale is None:
            return self.base_size
        z, y, x = (max(1, round(self.base_scale * p)) for p in self.patch)
        return z, y, x


class VoCo(Method):
    """The crops and bases of a batch, student and teacher, and the position prediction between them.

    The teacher follows the student after every optimiser step. The authors' code updates it before the teacher's next
    forward pass, which is equivalent: here the teacher begins equal to the student (methods.md 2.3, repair), so that a
    first update would change nothing.
    """

    config_class = VoCoConfig
    learns_from = "how much a crop overlaps each cell of a base grid"
    paper = (
        "Wu, L., Zhuang, J., & Chen, H. (2024). VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework "
        "for 3D Medical Image Analysis. CVPR."
    )
    levels = "encoder"
    collapse_cause = (
        "flips and turns of single crops (-o flip_probability=0 turn_probability=0) or a high learning_rate"
    )
    overlaps_key = "labels"
    overlap_fix = "tile two axes, as with -o grid=1,4,4"
    config: VoCoConfig

    def __init__(self, backbone: FeaturePyramid, config: VoCoConfig) -> None:
        super().__init__(backbone, config)
        self.head = projection_head(sum(backbone.channels), config.projection_dim, config.projection_dim, True)
        self.teacher = MomentumNetworks(**self.student()) if config.objective == "code" else None
        begin_equal(self, "teacher")

    @classmethod
    def crops_per_pass(cls, config: VoCoConfig) -> int:
        """The crops and bases of all volumes."""
        return config.volumes * (config.crops + prod(config.grid))

    @classmethod
    def resized_body(cls, config: VoCoConfig) -> tuple[int, int, int] | None:
        """As for every method; a slab is cut out of the volume."""
        return config.body_size if config.slab_base() is None else None

    @classmethod
    def sample(cls, volume: Volume, config: VoCoConfig, rng: np.random.Generator) -> Sample:
        """Tile the body, or a slab of it, with bases; draw crops, their labels and augmentation (methods.md 2.1).

        Returns arrays, for C channels, M crops, n bases and K = M + n, crops first:
            slab: (C, *(grid * base)) float16 from a resized body, else float32: the plans' normalised values.
            starts: (K, 3) first voxels in the slab.
            base: (3,) size of crops and bases in voxels.
            labels: (M, n) float32, overlap fractions.
            flips, turns: (K, 3) bool and (K,) quarter turns in the plane.
            shifts: (K, C) float32, to add to the values.
        """
        slab, base = cls._slab(volume, config, rng)
        crops, bases = random_crop_starts(rng, config.crops, config.grid, base), base_starts(config.grid, base)
        starts = np.concatenate([crops, bases])
        orientations = sample_orientations(rng, len(starts), config.flip_probability, config.turn_probability)
        _, height, width = config.patch
        if height != width:
            orientations["turns"][:] = 0
        return {
            "slab": slab,
            "starts": starts,
            "base": base,
            "labels": overlap_labels(crops, bases, base).astype(np.float32),
            **orientations,
            "shifts": sample_shifts(rng, len(starts), volume, config.shift_probability, config.shift_hu),
        }

    @classmethod
    def _slab(cls, volume: Volume, config: VoCoConfig, rng: np.random.Generator) -> tuple[np.ndarray, Integers]:
        """Values (C, *(grid * base)) that the bases tile, in one read, and the size of the bases."""
        if (resized := cls.resized_body(config)) is not None:
            return tile_body(volume.read_resized_body(resized), config.grid)
        body = volume.body_box
        if (largest := config.slab_base()) is None:
            return tile_body(volume.read(*body), config.grid)
        anchor = volume.random_body_voxel(rng)
        start, base = place_slab(rng, anchor, body, config.grid, largest, config.shrink_bases)
        return volume.read(start, start + base * config.grid), base

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Stack samples; pad slabs of different sizes at their ends, outside of all crops."""
        most = np.max([s["slab"].shape for s in samples], axis=0)
        padded = [np.pad(s["slab"], [(0, m - n) for m, n in zip(most, s["slab"].shape, strict=True)]) for s in samples]
        return Method.collate([{**s, "slab": slab} for s, slab in zip(samples, padded, strict=True)])

    def augment(self, batch: Batch) -> Batch:
        """Make `views` (B, K, C, *patch): crops and bases, independently resized, flipped, turned and shifted."""
        slab, config = batch["slab"].float(), self.config
        views = resized_crops(slab, batch["starts"], batch["base"], config.patch, batch["flips"], batch["turns"],
                              config.align_corners).add_(batch["shifts"][..., None, None, None])  # fmt: skip
        return {"views": views, **{key: batch[key] for key in ("labels", "slab", "starts", "base")}}

    def step(self, batch: Batch) -> StepOutput:
        """Prediction of the overlaps, and the regulariser, of an augmented batch (methods.md 2.3)."""
        config, views, labels = self.config, batch["views"], batch["labels"]
        followed = None
        if self.teacher is not None:
            with torch.no_grad():  # before the student's pass, whose activations stay
                followed = self.embed(self.teacher["backbone"], self.teacher["head"], views)
        crops, bases = self.embed(self.backbone, self.head, views)
        if followed is None:
            terms = paper_terms(crops, bases, labels)
        else:
            terms = code_terms(crops, bases, *followed, labels, config.reg_detach)
        loss = terms.positive + terms.negative + config.regulariser_weight * terms.regulariser
        embeddings = torch.cat([crops, bases], dim=1).detach().flatten(0, 1)
        pairs = _nearest_bases(crops.detach(), bases.detach(), labels)
        return StepOutput(loss, {k: v.detach() for k, v in terms._asdict().items()}, embeddings, pairs)

    def embed(self, backbone: nn.Module, head: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, M, d) of the crops and (B, n, d) of the bases among the views (B, M + n, C, *patch).

        One pass, so that the head's batch normalisation sees the crops and bases of all volumes together (methods.md
        2.2).
        """
        means = in_parts(lambda x: pooled(backbone(x)), self.config.accumulate, views.flatten(0, 1))
        vectors = head(means).unflatten(0, views.shape[:2])
        crops, bases = vectors.split([self.config.crops, prod(self.config.grid)], dim=1)
        return crops, bases

    def after_step(self, step: int) -> None:
        """The teacher follows the student."""
        if self.teacher is not None:
            self.teacher.follow(self.student(), self.config.teacher_momentum)

    def student(self) -> dict[str, Any]:
        """The networks that the teacher follows."""
        return {"backbone": self.backbone, "head": self.head}

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """For up to four volumes: two crops in the grid of bases, with their labels, each beside its view."""
        rows = []
        for i in range(min(_SHOWN, len(batch["views"]))):
            row = []
            for k in range(min(_SHOWN // 2, config.crops)):
                view = batch["views"][i, k, 0].numpy()
                title = f"volume {i + 1}, crop {k + 1}"
                row += [
                    _slab_panel(batch, config, i, k, title),
                    Panel(view[len(view) // 2], f"{title}: view", colour=k),
                ]
            rows.append(row)
        return rows

    @classmethod
    def whereabouts(cls, batch: Batch, config: Any) -> list[Whereabouts]:
        """The crops that `panels` shows, in the slabs that the bases tile."""
        shown = min(_SHOWN // 2, config.crops)
        found = []
        for i in range(min(_SHOWN, len(batch["slab"]))):
            base = batch["base"][i].numpy()
            first, (z, y, x) = batch["starts"][i, :shown].numpy(), base * config.grid
            boxes = np.stack([first, first + base], axis=1).astype(np.float64)
            image = batch["slab"][i, 0, :z, :y, :x].float().numpy()
            found.append(
                Whereabouts(i, boxes, range(shown), image=image, name="body" if config.slab_base() is None else "slab")
            )
        return found


def _nearest_bases(crops: Tensor, bases: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pair the crops (B, M, d) with the bases (B, n, d) that they overlap most: two tensors (B M, d)."""
    nearest = labels.argmax(2, keepdim=True).expand(-1, -1, bases.shape[2])
    return crops.flatten(0, 1), bases.gather(1, nearest).flatten(0, 1)


def _slab_panel(batch: Batch, config: VoCoConfig, i: int, k: int, title: str) -> Panel:
    """The slice of the slab through the middle of a crop, with the crop's box and the slice's bases and labels."""
    depth, height, width = base = batch["base"][i].numpy()
    starts = batch["starts"][i].numpy()
    crop, bases = starts[k], starts[config.crops :]
    z = int(crop[0] + depth // 2)
    _, rows, columns = base * config.grid
    layer = [j for j, first in enumerate(bases) if first[0] <= z < first[0] + depth]
    labels = batch["labels"][i, k].numpy()
    texts = [
        (f"{labels[j]:.2f}", float(bases[j][1] + height / 2), float(bases[j][2] + width / 2))
        for j in layer
        if labels[j] > 0
    ]
    return Panel(
        batch["slab"][i, 0, z, :rows, :columns].float().numpy(),
        f"{title}: bases, slice {z + 1} of {depth * config.grid[0]}",
        boxes=[(float(crop[1]), float(crop[2]), float(height), float(width))],
        frames=[(float(bases[j][1]), float(bases[j][2]), float(height), float(width)) for j in layer],
        texts=texts,
        crop=(i, k, (depth // 2 + 0.5) / depth),
    )

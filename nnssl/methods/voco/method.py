"""VoCo: contrastive position prediction on volumes (Wu et al., CVPR 2024).

A slab of a volume is tiled by base crops. How much a random crop overlaps each of them is what the similarity of their
representations is to tell; the bases are pushed apart. What is compared is the representation of a whole crop: all
encoder levels, averaged over space and concatenated, after a projection head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.core.geometry import bounding_box
from nnssl.methods.base import (
    Batch,
    Method,
    MethodConfig,
    Panel,
    Sample,
    StepOutput,
    Volume,
    at_least,
    below_one,
    between,
    formerly_fixed,
    positive,
)
from nnssl.methods.voco.augment import (
    base_starts,
    overlap_labels,
    place_slab,
    random_crop_starts,
    resized_crops,
    sample_orientations,
    sample_shifts,
)
from nnssl.methods.voco.loss import code_terms, paper_terms
from nnssl.networks.contrastive import MomentumNetworks, batch_statistics_head, begin_equal
from nnssl.networks.pyramid import FeaturePyramid, pooled

_SHOWN = 4  # volumes of `views.png`, and at most half as many crops of each


@dataclass(frozen=True, kw_only=True)
class VoCoConfig(MethodConfig):
    """Hyper-parameters of VoCo; [P] stands in the paper (table 9), [C] in the authors' code (methods.md 2)."""

    num_epochs: int = 1000  # x 250 steps = 250,000 steps [C]; 100,000 [P]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"  # [P] [C]
    amsgrad: bool = True  # [C]
    learning_rate: float = 1e-4  # [C]; 1e-3 [P]
    weight_decay: float = 1e-2  # [P] [C]
    schedule: Literal["constant", "cosine"] = "cosine"  # [P] [C]
    warmup_steps: int = 5000  # [C]; 100 [P]. A short run needs fewer.
    gradient_clip: float | None = 1.0  # the gradient of the logarithm grows to 1e6; the code clips without AMP only
    crops: int = 2  # random crops a volume [C]; 4 [P]
    grid: tuple[int, int, int] = (1, 4, 4)  # bases along (Z, Y, X): 4 x 4 x 1 [P] [C]
    base_scale: float = 1.5  # voxels of a base for one of the patch: 96 for 64 [P] [C]
    base_size: tuple[int, int, int] | None = None  # (Z, Y, X) voxels of bases and crops; None: base_scale * patch
    shrink_bases: bool = True  # smaller ones where the body is smaller than the slab; False: the slab is padded
    flip_probability: float = 0.2  # of each axis, for every crop and base on its own [C]. Flips hide left from right:
    turn_probability: float = 0.2  # of quarter turns in the plane [C]. A short run on symmetric anatomy needs 0 and 0.
    shift_probability: float = formerly_fixed(0.1)  # of a shift in intensity [C]
    shift_hu: float = formerly_fixed(42.5)  # largest, either way: a tenth of the window [C]
    objective: Literal["code", "paper"] = "code"  # the paper's has no teacher
    reg_detach: bool = True  # the code's regulariser gives the later base of a pair no gradient
    regulariser_weight: float = 1.0  # lambda [P] [C]
    teacher_momentum: float = 0.9  # [C]
    projection_dim: int = 2048  # of all three layers [P] [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crops", "grid", "base_size", "projection_dim"):
            at_least(self, name, 1)
        at_least(self, "regulariser_weight", 0.0)
        positive(self, "base_scale")
        below_one(self, "teacher_momentum")
        between(self, "shift_hu", 0, 10_000)
        if prod(self.grid) < 2:
            raise UserError("one base tells no positions apart; set a grid (Z,Y,X) such as -o grid=1,4,4")

    def largest_base(self) -> tuple[int, int, int]:
        """Size (Z, Y, X) of bases and crops in voxels, before they shrink to the body; the patch has to be known."""
        if self.base_size is not None:
            return self.base_size
        assert self.patch_size is not None
        z, y, x = (max(1, round(self.base_scale * p)) for p in self.patch_size)
        return z, y, x


class VoCo(Method):
    """The crops and bases of a batch, student and teacher, and the position prediction between them.

    The teacher follows the student after every optimiser step. The authors' code does it before the teacher's forward
    pass of the next step, which is the same: in its very first pass the teacher here equals the student (methods.md
    2.3, repair), so that an update would change nothing.
    """

    config_class = VoCoConfig
    levels = "encoder"
    config: VoCoConfig

    def __init__(self, backbone: FeaturePyramid, config: VoCoConfig) -> None:
        super().__init__(backbone, config)
        self.head = batch_statistics_head(sum(backbone.channels), config.projection_dim, config.projection_dim)
        self.teacher = MomentumNetworks(**self.student()) if config.objective == "code" else None
        begin_equal(self, "teacher")

    @classmethod
    def check(cls, config: VoCoConfig, backbone: FeaturePyramid) -> None:
        """As for every method; the patches of a step are the crops and bases of its volumes."""
        patches = config.volumes * (config.crops + prod(config.grid))
        backbone.check_patch(config.patch, patches)

    @classmethod
    def sample(cls, volume: Volume, config: VoCoConfig, rng: np.random.Generator) -> Sample:
        """A slab of the body, random crops and the bases in it, with labels and augmentation (methods.md 2.1).

        Returns arrays, for C channels, M crops, n bases and K = M + n, crops first:
            slab: (C, *(grid * base)) float32, the plans' normalised values.
            starts: (K, 3) first voxels in the slab.
            base: (3,) size of crops and bases in voxels.
            labels: (M, n) float32, overlap fractions.
            flips, turns: (K, 3) bool and (K,) quarter turns in the plane.
            shifts: (K, C) float32, what is added to the values.
        """
        body = bounding_box(volume.read_body(np.zeros(3, dtype=np.int64), volume.size))
        anchor = volume.random_body_voxel(rng)
        start, base = place_slab(rng, anchor, body, config.grid, config.largest_base(), config.shrink_bases)
        crops, bases = random_crop_starts(rng, config.crops, config.grid, base), base_starts(config.grid, base)
        starts = np.concatenate([crops, bases])
        orientations = sample_orientations(rng, len(starts), config.flip_probability, config.turn_probability)
        _, height, width = config.patch
        if height != width:
            orientations["turns"][:] = 0
        return {
            "slab": volume.read(start, start + base * config.grid),  # the one read of the sample
            "starts": starts,
            "base": base,
            "labels": overlap_labels(crops, bases, base).astype(np.float32),
            **orientations,
            "shifts": sample_shifts(rng, len(starts), volume, config.shift_probability, config.shift_hu),
        }

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Stacked samples; slabs of different sizes are padded at their ends, where no crop looks."""
        most = np.max([s["slab"].shape for s in samples], axis=0)
        padded = [
            np.pad(s["slab"], [(0, m - n) for m, n in zip(most, s["slab"].shape, strict=True)])
            if s["slab"].shape != tuple(most)
            else s["slab"]
            for s in samples
        ]
        return Method.collate([{**s, "slab": slab} for s, slab in zip(samples, padded, strict=True)])

    def augment(self, batch: Batch) -> Batch:
        """`views` (B, K, C, *patch): crops and bases, resized, flipped, turned, shifted; each independently."""
        patch = self.config.patch
        views = resized_crops(
            batch["slab"], batch["starts"], batch["base"], patch, batch["flips"], batch["turns"]
        ).add_(batch["shifts"][..., None, None, None])
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

        All levels are averaged over space and concatenated; one pass, so that the head's batch normalisation sees the
        crops and bases of all volumes together (methods.md 2.2).
        """
        vectors = head(pooled(backbone(views.flatten(0, 1)))).unflatten(0, views.shape[:2])
        crops, bases = vectors.split([self.config.crops, prod(self.config.grid)], dim=1)
        return crops, bases

    def after_step(self, step: int) -> None:
        """The teacher follows the student."""
        if self.teacher is not None:
            self.teacher.follow(self.student(), self.config.teacher_momentum)

    def student(self) -> dict[str, Any]:
        """What the teacher follows."""
        return {"backbone": self.backbone, "head": self.head}

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """For up to four volumes: two crops in the slab, with the grid and the labels, each beside its view."""
        rows = []
        for i in range(min(_SHOWN, len(batch["views"]))):
            row = []
            for k in range(min(_SHOWN // 2, config.crops)):
                view = batch["views"][i, k, 0].numpy()
                title = f"volume {i + 1}, crop {k + 1}"
                row += [_slab_panel(batch, config, i, k, title), Panel(view[len(view) // 2], f"{title}: view")]
            rows.append(row)
        return rows


def _nearest_bases(crops: Tensor, bases: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Crops (B M, d), each with the base (B M, d) that it overlaps most; from (B, M, d), (B, n, d) and (B, M, n)."""
    nearest = labels.argmax(2, keepdim=True).expand(-1, -1, bases.shape[2])
    return crops.flatten(0, 1), bases.gather(1, nearest).flatten(0, 1)


def _slab_panel(batch: Batch, config: VoCoConfig, i: int, k: int, title: str) -> Panel:
    """The slice of the slab in the middle of a crop, with the bases and labels that lie in it and the crop's box."""
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
        batch["slab"][i, 0, z, :rows, :columns].numpy(),
        f"{title}: slab, slice {z + 1} of {depth * config.grid[0]}",
        boxes=[(float(crop[1]), float(crop[2]), float(height), float(width))],
        frames=[(float(bases[j][1]), float(bases[j][2]), float(height), float(width)) for j in layer],
        texts=texts,
    )

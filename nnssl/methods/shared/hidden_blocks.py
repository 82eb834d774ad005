"""Blocks of a crop that a network must not see: how they are drawn, and the options of the draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.geometry import Integers, random_crop_start
from nnssl.methods.base import Batch, Method, MethodConfig, Sample, Volume, at_least, below_one
from nnssl.methods.panel import Panel
from nnssl.methods.shared.block_tokens import block_size
from nnssl.methods.shared.overlapping_crops import boxes_of_crops
from nnssl.networks.pyramid import FeaturePyramid, spread


def hidden_count(blocks: int, ratio: float) -> int:
    """Number of hidden blocks: ceil(ratio * blocks), without rounding errors such as 0.75 * 4 above 3."""
    return ceil(round(ratio * blocks, 6))


def draw_mask(rng: np.random.Generator, grid: Sequence[int], ratio: float) -> NDArray[np.bool_]:
    """Hide a fixed number of random blocks.

    Args:
        rng: source of the draw.
        grid: blocks along each axis.
        ratio: hidden share, in [0, 1).

    Returns:
        (*grid) bool, True where hidden; `hidden_count` of them are.
    """
    blocks = prod(grid)
    hidden = np.zeros(blocks, dtype=bool)
    hidden[rng.choice(blocks, hidden_count(blocks, ratio), replace=False, shuffle=False)] = True
    return hidden.reshape(tuple(grid))


def blocks_inside(
    start: Sequence[int] | Integers, size: Sequence[int] | Integers, patch: Sequence[int], block: Sequence[int]
) -> NDArray[np.bool_]:
    """Which blocks of a crop contain voxels of the volume, and not only padding.

    Args:
        start: (3,) first voxel of the crop, which may be negative.
        size: (3,) voxels of the volume.
        patch: (3,) voxels of the crop.
        block: (3,) voxels of a block.

    Returns:
        (*patch // block) bool.
    """
    lines = []
    for first, whole, extent, step in zip(start, size, patch, block, strict=True):
        begin = first + np.arange(0, extent, step)
        lines.append((begin < whole) & (begin + step > 0))
    z, y, x = lines
    return z[:, None, None] & y[None, :, None] & x[None, None, :]


def visible_blocks(hidden: Tensor, ratio: float, layers: int = 1) -> Tensor:
    """Numbers of the blocks that are not hidden, in ascending order.

    Args:
        hidden: (B, *grid) bool from `draw_mask`; its known number of hidden blocks saves a wait for the device.
        ratio: hidden share.
        layers: number of blocks that are hidden or visible together, such as those of a column.

    Returns:
        (B, n) integers.
    """
    flat = hidden.flatten(1)
    units = flat.shape[1] // layers
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : layers * (units - hidden_count(units, ratio))]


@dataclass(frozen=True, kw_only=True)
class HiddenBlocksConfig(MethodConfig):
    """Hyper-parameters of the masks; [P] is from Alice's paper, [C] from its code, [D] ours."""

    mask_ratio: float = 0.75  # [P] [C]
    mask_block: tuple[int, int, int] | None = None  # (Z, Y, X) voxels; None: about 16, see `block_size` [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "mask_block")
        below_one(self, "mask_ratio")


class HiddenBlocks(Method):
    """A method that hides blocks of K crops a sample.

    Subclasses draw samples with `crops` (K, C, *P), `mask_seeds` (K,), `starts` (K, 3), and the volumes' `sizes`
    (K, 3).
    """

    paper = (
        "He, K., Chen, X., Xie, S., Li, Y., Dollár, P., & Girshick, R. (2022). Masked Autoencoders Are Scalable "
        "Vision Learners. CVPR."
    )
    host_keys = frozenset({"mask_seeds", "starts", "sizes"})
    crops_per_sample: ClassVar[int] = 1
    config: HiddenBlocksConfig

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__(backbone, config)
        self.block = block_size(backbone, config.patch, config.mask_block)
        self.grid = tuple(size // step for size, step in zip(config.patch, self.block, strict=True))

    @classmethod
    def check_masks(cls, config: Any, backbone: FeaturePyramid) -> None:
        """Raise UserError where no blocks fit, or all of them would be hidden."""
        block = block_size(backbone, config.patch_size, config.mask_block)
        maskable = cls.maskable([size // step for size, step in zip(config.patch_size, block, strict=True)], config)
        if hidden_count(prod(maskable), config.mask_ratio) == prod(maskable):
            raise UserError(f"a mask_ratio of {config.mask_ratio} hides all {prod(maskable)} blocks of the patch; set "
                            f"a larger -o patch_size=..., a smaller mask_block=... or mask_ratio=0.5")  # fmt: skip

    @classmethod
    def crops_per_pass(cls, config: Any) -> int:
        """All crops of a step."""
        return int(config.volumes) * cls.crops_per_sample

    @classmethod
    def maskable(cls, grid: list[int], config: Any) -> list[int]:
        """The grid (Z, Y, X) for drawing masks; an axis of 1 is hidden or visible as a whole."""
        return grid

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """The crop of each sample's own volume."""
        return boxes_of_crops(batch["starts"][:, :1], config.patch)

    def draw_masks(self, batch: Batch) -> Tensor:
        """The blocks to hide (B, K, *grid) bool, on the host."""
        drawn_on = self.maskable(list(self.grid), self.config)
        seeds = batch["mask_seeds"].numpy()
        masks = [
            np.broadcast_to(draw_mask(np.random.default_rng(int(s)), drawn_on, self.config.mask_ratio), self.grid)
            for s in seeds.flat
        ]
        return torch.from_numpy(np.stack(masks)).view(*seeds.shape, *self.grid)


def sample_masked_crop(volume: Volume, patch_size: Sequence[int], rng: np.random.Generator) -> Sample:
    """Draw a crop around a random voxel of the body and the seed of its mask, as arrays of `HiddenBlocks`, K = 1."""
    patch = np.asarray(patch_size)
    start = random_crop_start(rng, volume.random_body_voxel(rng), patch, volume.size)
    return {
        "crops": volume.read(start, start + patch)[None],
        "mask_seeds": rng.integers(0, 2**63, 1, dtype=np.int64),
        "starts": start[None],
        "sizes": volume.size[None],
    }


def masked_crop_panels(crops: Tensor, hidden: Tensor) -> list[list[Panel]]:
    """Crops (M, C, *P) on the CPU, whole and with the hidden blocks (M, *grid) blank."""
    pairs = zip(crops.numpy(), visible_voxels(crops, hidden).numpy(), strict=True)
    return [
        [
            slice_panel(image[0], f"volume {i + 1}: {name}", values=value_range(crop[0]), of=(i, 0))
            for image, name in ((crop, "crop"), (seen, "visible"))
        ]
        for i, (crop, seen) in enumerate(pairs)
    ]


def visible_voxels(crops: Tensor, hidden: Tensor) -> Tensor:
    """Crops (M, C, *P) with 0 in hidden blocks (M, *grid)."""
    return crops.masked_fill(spread(hidden, crops.shape[2:]), 0)


def slice_panel(
    crop: np.ndarray, title: str, points: tuple[tuple[int, float, float], ...] = (),
    values: tuple[float, float] | None = None, of: tuple[int, int] | None = None,
) -> Panel:  # fmt: skip
    """The middle slice of a crop (Z, Y, X); `of` are the numbers of its sample and of the crop."""
    middle = len(crop) // 2
    return Panel(crop[middle], title, points, values=values,
                 crop=None if of is None else (*of, (middle + 0.5) / len(crop)))  # fmt: skip


def value_range(crop: np.ndarray) -> tuple[float, float]:
    """Least and largest value of the middle slice of a crop (Z, Y, X)."""
    middle = crop[len(crop) // 2]
    return float(middle.min()), float(middle.max())

"""The interface between networks and methods: feature maps at several resolutions, finest first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, floor, prod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.errors import UserError

Stride = tuple[int, int, int]
Levels = Literal["encoder", "decoder"]  # which maps of a network form the pyramid


class BlockMask(NamedTuple):
    """Which of the N blocks of each volume of a batch are hidden; n are visible in every volume."""

    hidden: Tensor  # (B, Z', Y', X') bool, blocks divide the volume evenly
    visible: Tensor  # (B, n) numbers of the visible blocks, ascending, the last axis fastest
    on_host: Tensor | None = None  # `hidden` on the host, from which shapes can be read without a wait for the device


# Most voxels that may share a cell of a half-precision map; the sum of more gradients loses digits (bf16 has 8 bits).
_MAX_SHARED_CELL = 8


class FeaturePyramid(nn.Module):
    """A network that maps a volume to feature maps, finest level first.

    A cell of level l covers `strides[l]` input voxels: voxel (z, y, x) is in cell (z // s_z, y // s_y, x // s_x).

    Args:
        channels: Number of channels of each level.
        strides: Cumulative stride (z, y, x) of each level with respect to the input; anisotropic ones are allowed.
        input_channels: Number of channels the network reads.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Stride], input_channels: int) -> None:
        super().__init__()
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[Stride, ...] = tuple(strides)
        self.input_channels = input_channels
        self.divisor: Stride = (1, 1, 1)  # the sides of an input must be multiples of it
        self.unused: tuple[str, ...] = ()  # prefixes of the parameters that the maps do not depend on
        self.decoding: tuple[str, ...] = ()  # module lists with one entry per decoded level, finest last
        self.finest = 0  # finest level that a network with `decoding` computes
        self.encodes = False  # whether the finest level ends in a linear layer: an encoding to compare, not a feature
        self.encodes_blocks = False  # whether the only level holds one token per cell, which attends to all others
        self.convolutional = False  # whether only convolutions, poolings and norms look across cells: see `sparse`
        self.position_grids: dict[str, Stride] = {}  # learned embeddings (1, N, d) by name: tokens along each axis
        self.mask_unit: Stride = (1, 1, 1)  # the sides of the blocks that masks hide must be multiples of it

    def used_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that the maps depend on, each under one name."""
        everything = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: tensor for name, tensor in everything.items() if not name.startswith(self.unused)}

    def leave_out_finer(self, level: int) -> None:
        """Stop computing the maps finer than this level, where the network decodes stage by stage (`decoding`).

        `forward` then returns empty tensors in their place, and the parameters that only they need get no gradient.
        """
        if not self.decoding:
            return
        self.finest = level
        for name in self.decoding:
            stages = list(self.get_submodule(name).children())
            for number, stage in enumerate(stages):
                if number >= len(stages) - level:
                    stage.requires_grad_(False)
                    self.unused += (f"{name}.{number}.",)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X) to the levels [(B, channels[l], Z_l, Y_l, X_l)], finest first."""
        raise NotImplementedError

    def masked_levels(self, x: Tensor, mask: BlockMask) -> list[Tensor]:
        """Return the levels of a volume without letting the network see its hidden blocks.

        Args:
            x: (B, C, Z, Y, X), normalised: hidden voxels become 0.
            mask: Which blocks are hidden.

        Returns:
            The levels, finest first; their values in hidden blocks are meaningless.
        """
        levels: list[Tensor] = self(x.masked_fill(spread(mask.hidden, x.shape[2:]), 0))
        return levels

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that the network can train on patches of this size.

        By default every side must be a multiple of `divisor`, with two voxels or more at the coarsest level.

        Args:
            patch_size: Patch in voxels (z, y, x).
            batch_size: Number of patches of one forward call.

        Raises:
            UserError: The network cannot take this patch; the message names sizes that it takes.
        """
        patch = check_three_axes(patch_size)
        sizes = [
            [rounded(side / step) * step for side, step in zip(patch, self.divisor, strict=True)]
            for rounded in (floor, ceil)
        ]
        if not self.takes_single_voxels(batch_size):
            for size in sizes:
                size[2] *= 2 if tuple(size) == self.divisor else 1
        if list(patch) not in sizes:
            fitting = dict.fromkeys(format_size(size) for size in sizes if min(size) > 0)
            reason = (
                "leaves one voxel at the coarsest level, and normalisation needs two"
                if patch == self.divisor
                else f"is not divisible by {format_size(self.divisor)}, the total stride of the network"
            )
            raise UserError(f"the patch size {format_size(patch)} {reason}; use {' or '.join(fitting)}")

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Whether patches may have one voxel at the coarsest level in training; instance normalisation refuses it."""
        return False


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[Stride]:
    """Multiply the strides of the stages, each to the one before, up to each level."""
    per_axis = zip(*strides, strict=True)
    z, y, x = ([prod(axis[: level + 1]) for level in range(len(axis))] for axis in per_axis)
    return list(zip(z, y, x, strict=True))


def spread(hidden: Tensor, size: Sequence[int]) -> Tensor:
    """Masks of blocks (B, Z', Y', X') as masks (B, 1, *size) of the cells of a finer grid."""
    for axis, extent in enumerate(size):
        hidden = hidden.repeat_interleave(extent // hidden.shape[axis + 1], dim=axis + 1)
    return hidden[:, None]


def block_view(volumes: Tensor, block: Sequence[int]) -> Tensor:
    """View volumes (B, C, Z, Y, X) as blocks of (3,) cells: (B, Z', Y', X', C, *block)."""
    split = [n for extent, step in zip(volumes.shape[2:], block, strict=True) for n in (extent // step, step)]
    return volumes.reshape(*volumes.shape[:2], *split).permute(0, 2, 4, 6, 1, 3, 5, 7)


def assemble_blocks(blocks: Tensor) -> Tensor:
    """Volumes (B, C, Z, Y, X) of blocks (B, Z', Y', X', C, *block): the inverse of `block_view`."""
    size = [number * step for number, step in zip(blocks.shape[1:4], blocks.shape[5:], strict=True)]
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(blocks), blocks.shape[4], *size)


def pooled(levels: Sequence[Tensor]) -> Tensor:
    """Means of levels (B, C_l, ...) over space, one after another: (B, sum(C_l)), float32 or wider."""
    return torch.cat([x.flatten(2).mean(2, dtype=torch.promote_types(x.dtype, torch.float32)) for x in levels], dim=1)


def check_three_axes(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Return the patch size as three ints.

    Raises:
        UserError: It does not have three axes, or an axis is below 1.
    """
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise UserError(f"the patch size {format_size(patch_size)} must be three numbers of at least 1 (Z,Y,X); use "
                        f"for example 32,64,64")  # fmt: skip
    z, y, x = (int(size) for size in patch_size)
    return z, y, x


def format_size(size: Sequence[int]) -> str:
    """Write a size as the commands read it: '32,64,64'."""
    return ",".join(str(int(n)) for n in size)


def padded_to_multiple(x: Tensor, divisor: Stride) -> Tensor:
    """Pad an image (B, C, Z, Y, X) with zeros at the end of every axis to a multiple of `divisor`, as nnU-Net pads."""
    z, y, x_ = (-size % d for size, d in zip(x.shape[2:], divisor, strict=True))
    return F.pad(x, (0, x_, 0, y, 0, z)) if z or y or x_ else x


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first cells (B, C, *size) of a map (B, C, Z, Y, X)."""
    z, y, x_ = size
    return x[:, :, :z, :y, :x_]


def gather_voxels(pyramid: Sequence[Tensor], strides: Sequence[Stride], voxels: Tensor) -> Tensor:
    """Read the representation of voxels: the concatenation of the cells that contain them, without interpolation.

    Level l is read at (z // s_z, y // s_y, x // s_x) (methods.md 1.2, "representation of voxel").

    Args:
        pyramid: Feature maps (B, C_l, Z_l, Y_l, X_l), finest first.
        strides: Cumulative stride of each level.
        voxels: Integers (N, 4) of [batch, z, y, x], in voxels of the network's input.

    Returns:
        Features (N, sum of C_l), in the order of the levels; float32 when the maps are half precision.
    """
    batch = voxels[:, 0]
    rows = []
    for feature_map, stride in zip(pyramid, strides, strict=True):
        z, y, x = (voxels[:, axis + 1] // stride[axis] for axis in range(3))
        half = feature_map.dtype in (torch.bfloat16, torch.float16)
        if half and prod(stride) > _MAX_SHARED_CELL:
            # The gradients of all voxels in a cell are summed in the type of the map. These maps are small.
            feature_map = feature_map.float()
        cells = _read_cells(feature_map, batch, z, y, x)
        rows.append(cells.float() if half else cells)
    return torch.cat(rows, dim=1)


def interpolate_cells(size: Sequence[int], stride: Stride, points: Tensor) -> tuple[Tensor, Tensor]:
    """Find the cells of a map around points, and their weights in trilinear interpolation.

    The centre of cell c is at voxel (c + 0.5) * stride - 0.5 of the network's input. A point beyond the outermost
    centres takes the value there.

    Args:
        size: Cells (Z_l, Y_l, X_l) of the map.
        stride: Voxels per cell.
        points: Floats (N, 4) of [batch, z, y, x], in voxels of the network's input; integers are the voxels' centres.

    Returns:
        Integers (N, 8, 4) of [batch, cell z, cell y, cell x], and weights (N, 8) that sum to 1, of the points' type.
    """
    batch = points[:, 0].long()
    along = []  # for each axis the cells (N,) below and above, each with its weight
    for axis, (cells, step) in enumerate(zip(size, stride, strict=True)):
        place = ((points[:, axis + 1] + 0.5) / step - 0.5).clamp(0, cells - 1)
        low = place.floor()
        fraction, below = place - low, low.long()
        along.append(((below, 1 - fraction), ((below + 1).clamp(max=cells - 1), fraction)))
    corners, weights = [], []
    for (z, of_z), (y, of_y), (x, of_x) in product(*along):
        corners.append(torch.stack([batch, z, y, x], dim=1))
        weights.append(of_z * of_y * of_x)
    return torch.stack(corners, dim=1), torch.stack(weights, dim=1)


def _read_cells(feature_map: Tensor, batch: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read (N, C) cells of a map (B, C, Z, Y, X)."""
    _, channels, size_z, size_y, size_x = feature_map.shape
    channels_last = feature_map.is_contiguous(memory_format=torch.channels_last_3d)
    fewer_cells_than_rows = feature_map.numel() <= channels * len(batch)
    if channels_last or fewer_cells_than_rows:
        # One row per cell is a view of a channels-last map and a cheap copy of a small one. Plain indexing is slower,
        # and its gradient has the default layout, which the convolutions before it would have to convert.
        flat = ((batch * size_z + z) * size_y + y) * size_x + x
        return feature_map.permute(0, 2, 3, 4, 1).reshape(-1, channels).index_select(0, flat)
    return feature_map[batch, :, z, y, x]

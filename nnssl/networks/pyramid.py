"""What a backbone gives to a method: feature maps at several resolutions, finest first."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from nnssl.errors import UserError

Stride = tuple[int, int, int]

# As many voxels may share one cell of a half-precision map before their summed gradients lose digits (bf16 has 8 bits).
_MAX_SHARED_CELL = 8


class FeaturePyramid(nn.Module):
    """A network that maps a volume to feature maps, finest level first.

    A cell of level l covers `strides[l]` input voxels: voxel (z, y, x) lies in cell (z // s_z, y // s_y, x // s_x).

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
        self.divisor: Stride = (1, 1, 1)  # what every axis of an input has to be divisible by
        self.unused: tuple[str, ...] = ()  # how the names of parameters begin that the maps do not depend on

    def used_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that the maps depend on; a tensor with several names comes once."""
        everything = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: tensor for name, tensor in everything.items() if not name.startswith(self.unused)}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X) to the levels [(B, channels[l], Z_l, Y_l, X_l)], finest first."""
        raise NotImplementedError

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that the network can train on patches of this size.

        Args:
            patch_size: Patch in voxels (z, y, x).
            batch_size: Number of patches of one forward call.

        Raises:
            UserError: The network cannot take this patch; the message names sizes that it takes.
        """
        raise NotImplementedError


def check_three_axes(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """Return the patch size as three ints.

    Raises:
        UserError: It has not three axes or an axis is below 1.
    """
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise UserError(
            f"The patch size {format_size(patch_size)} must be three numbers of at least 1 (Z,Y,X), such as 32,64,64."
        )
    z, y, x = (int(size) for size in patch_size)
    return z, y, x


def format_size(size: Sequence[int]) -> str:
    """Write a size as the commands read it: '32,64,64'."""
    return ",".join(str(int(n)) for n in size)


def to_channels_last(x: Tensor) -> Tensor:
    """Return the volume (B, C, Z, Y, X) in `torch.channels_last_3d`, also when C is 1.

    With one channel the two layouts hold the same bytes in the same order and torch keeps the strides of the default
    one, so that the first convolution would write the default layout and every later layer would follow it.
    """
    if x.shape[1] != 1:
        return x.contiguous(memory_format=torch.channels_last_3d)
    batch, _, *size = x.shape
    return x.reshape(batch, *size, 1).permute(0, 4, 1, 2, 3)


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
            # The gradients of all the voxels of a cell are summed in the type of the map: these maps are small.
            feature_map = feature_map.float()
        cells = _read_cells(feature_map, batch, z, y, x)
        rows.append(cells.float() if half else cells)
    return torch.cat(rows, dim=1)


def _read_cells(feature_map: Tensor, batch: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Read (N, C) cells of a map (B, C, Z, Y, X)."""
    _, channels, size_z, size_y, size_x = feature_map.shape
    channels_last = feature_map.is_contiguous(memory_format=torch.channels_last_3d)
    fewer_cells_than_rows = feature_map.numel() <= channels * len(batch)
    if channels_last or fewer_cells_than_rows:
        # A row per cell is a view of a channels-last map and a cheap copy of a small one. Plain indexing is slower, and
        # its gradient comes in the default layout, which the convolutions before it would have to convert.
        flat = ((batch * size_z + z) * size_y + y) * size_x + x
        return feature_map.permute(0, 2, 3, 4, 1).reshape(-1, channels).index_select(0, flat)
    return feature_map[batch, :, z, y, x]

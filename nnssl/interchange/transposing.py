"""From networks that read volumes as (x, y, z) to the same networks that read them as (z, y, x).

nnU-Net's arrays are (z, y, x). A network whose every kernel and table is turned gives the turned output of the turned
volume, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

_KERNEL_AXES = 5  # (out, in, x, y, z), also of transposed convolutions


def transposed_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the kernels of all 3D (transposed) convolutions, (., ., x, y, z) to (., ., z, y, x); the rest stays."""
    return {
        name: tensor.permute(0, 1, 4, 3, 2).contiguous() if tensor.ndim == _KERNEL_AXES else tensor
        for name, tensor in state.items()
    }


def transposed_tokens(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Turn position embeddings (1, X * Y * Z, d) of a grid (X, Y, Z) into those of the grid (Z, Y, X)."""
    x, y, z = grid
    turned = tokens.reshape(len(tokens), x, y, z, -1).permute(0, 3, 2, 1, 4)
    return turned.reshape(tokens.shape).contiguous()


def transposed_window_table(table: Tensor, window: Sequence[int]) -> Tensor:
    """Turn the relative position biases of window attention.

    Args:
        table: ((2 X - 1) * (2 Y - 1) * (2 Z - 1), heads), a row for each offset of two cells of a window.
        window: its cells (X, Y, Z).
    """
    x, y, z = (2 * n - 1 for n in window)
    return table.reshape(x, y, z, -1).permute(2, 1, 0, 3).reshape(table.shape).contiguous()


def transposed_patch_embedding(kernel: Tensor, patch: Sequence[int], channels: int) -> Tensor:
    """Turn the kernel of a linear patch embedding whose inputs are (X, Y, Z, channels), flattened.

    Args:
        kernel: (d, X * Y * Z * channels).
        patch: voxels (X, Y, Z) of a token.
        channels: of the image.
    """
    x, y, z = patch
    return kernel.reshape(-1, x, y, z, channels).permute(0, 3, 2, 1, 4).reshape(kernel.shape).contiguous()

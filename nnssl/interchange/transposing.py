"""From networks that read volumes as (x, y, z) to the same networks that read them as (z, y, x).

nnU-Net's arrays are (z, y, x). A convolutional network whose kernels are turned gives the turned output of the turned
volume, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_KERNEL_AXES = 5  # (out, in, x, y, z), also of transposed convolutions


def transposed_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the kernels of all 3D (transposed) convolutions, (., ., x, y, z) to (., ., z, y, x); the rest stays."""
    return {
        name: tensor.permute(0, 1, 4, 3, 2).contiguous() if tensor.ndim == _KERNEL_AXES else tensor
        for name, tensor in state.items()
    }

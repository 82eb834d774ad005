"""Alice's agreement of a student and a target (methods.md 4.3): the paper's cosine, the authors' cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.distributed import all_reduce_sum, world_size
from nnssl.networks.contrastive import l2_normalise

STUDENT_TEMPERATURE = 0.1  # [C]
TEACHER_TEMPERATURES = (0.008, 0.01)  # first and last of the warm-up [C]; float16 would overflow at these
_WARMUP_EPOCHS = 30  # [C]
_CENTRE_MOMENTUM = 0.9  # [C]


def cosine_distance(student: Tensor, target: Tensor) -> Tensor:
    """Return 2 - 2 cos, averaged over all vectors (BYOL, eq. 2).

    Args:
        student: (..., d) floating.
        target: the same shape; gets no gradient.

    Returns:
        Scalar in 0..4, at least float32; a zero vector counts as orthogonal to every other.
    """
    cosine = (l2_normalise(student) * l2_normalise(target.detach())).sum(-1)
    return (2 - 2 * cosine).mean()


def teacher_temperature(epoch: int) -> float:
    """Of the authors' code: linear over the first 30 epochs, then constant."""
    return float(np.interp(epoch, (0, _WARMUP_EPOCHS - 1), TEACHER_TEMPERATURES))


class CentredCrossEntropy(nn.Module):
    """DINO's loss as Alice's code has it: H(softmax((t - c) / T_t), softmax(s / 0.1)), averaged over all vectors.

    The centre c follows the mean of the targets of all processes. Nothing here runs in half precision.

    Args:
        width: d of the vectors.
    """

    centre: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, student: Tensor, target: Tensor, temperature: Tensor | float) -> Tensor:
        """Scalar for vectors (..., d); the target, whose temperature is given, gets no gradient."""
        wide = torch.promote_types(student.dtype, torch.float32)
        with torch.autocast(student.device.type, enabled=False):
            probability = ((target.detach().to(wide) - self.centre) / temperature).softmax(-1)
            surprise = -(student.to(wide) / STUDENT_TEMPERATURE).log_softmax(-1)
            return (probability * surprise).sum(-1).mean()

    @torch.no_grad()
    def follow(self, target: Tensor) -> None:
        """Move the centre a tenth of the way to the mean of the targets (..., d); every process has to call it."""
        mean = all_reduce_sum(target.flatten(0, -2).to(self.centre.dtype).mean(0)) / world_size()
        self.centre.lerp_(mean, 1 - _CENTRE_MOMENTUM)

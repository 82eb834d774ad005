"""Distillation of a segmentation network (LAPN; methods.md 5.5).

L = a T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - a) (Dice + cross-entropy on what is annotated), with the teacher's
logits t, the student's s and a = 1/2. The gradient of the KL shrinks with 1 / T^2; the factor keeps it comparable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5  # as in nnU-Net's Dice


def temperature_at(epoch: int, num_epochs: int, start: float = 1.0, end: float = 4.0) -> float:
    """Return the temperature of an epoch counted from 0: linear from `start` to `end` in the last epoch."""
    return start + (end - start) * epoch / max(num_epochs - 1, 1)


def distillation_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, regions: bool = False) -> Tensor:
    """Return the mean over voxels of KL(teacher || student) at a temperature, without the factor T^2.

    Args:
        student: (B, C, ...) logits.
        teacher: (B, C, ...) logits.
        temperature: T, above 0.
        regions: the channels are independent: the sum of their binary divergences.

    Returns:
        () at least 0, in nats; 0 for equal logits at every temperature.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = _scaled(student, temperature), _scaled(teacher, temperature)
        if regions:
            both = [(t.sigmoid(), functional.logsigmoid(t), functional.logsigmoid(s)),
                    ((-t).sigmoid(), functional.logsigmoid(-t), functional.logsigmoid(-s))]  # fmt: skip
            divergence = torch.stack([p * (log_p - log_q) for p, log_p, log_q in both]).sum(0)
        else:
            divergence = functional.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True)
        return divergence.sum(1).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0, regions: bool = False) -> Tensor:
    """Return the mean over voxels of the cross-entropy of the student under the teacher's probabilities.

    Arguments as in `distillation_kl`; the two differ by the teacher's entropy, which has no gradient.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = _scaled(student, temperature), _scaled(teacher, temperature)
        if regions:
            return functional.binary_cross_entropy_with_logits(s, t.sigmoid(), reduction="none").sum(1).mean()
        return -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()


def soft_dice(student: Tensor, teacher: Tensor, temperature: float = 1.0, regions: bool = False) -> Tensor:
    """Return the mean Dice (0 to 1) of the student's and the teacher's probabilities, foreground classes only.

    Arguments as in `distillation_kl`; each case and class has its own Dice.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = _scaled(student, temperature), _scaled(teacher, temperature)
        p, q = (s.sigmoid(), t.sigmoid()) if regions else (s.softmax(1)[:, 1:], t.softmax(1)[:, 1:])
        voxels = tuple(range(2, s.ndim))
        overlap, size = (p * q).sum(voxels), (p.square() + q.square()).sum(voxels)  # 1 for equal soft maps
        return ((2 * overlap + _SMOOTH) / (size + _SMOOTH)).mean()


def teaching_loss(
    student: Tensor, teacher: Tensor, temperature: float, regions: bool = False, dice_ce: bool = False
) -> Tensor:
    """Return what the teacher's outputs give to the loss, with the factor T^2.

    Args:
        student: as in `distillation_kl`.
        teacher: as in `distillation_kl`.
        temperature: as in `distillation_kl`.
        regions: as in `distillation_kl`.
        dice_ce: T^2 times the cross-entropy, minus the Dice, of the student and the teacher's probabilities at the
            temperature, instead of T^2 times the KL.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"logits of student and teacher must have one shape, got {tuple(student.shape)} and "
                         f"{tuple(teacher.shape)}")  # fmt: skip
    if not dice_ce:
        return temperature**2 * distillation_kl(student, teacher, temperature, regions)
    cross_entropy = soft_cross_entropy(student, teacher, temperature, regions)
    return temperature**2 * cross_entropy - soft_dice(student, teacher, temperature, regions)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits over T in float32 (float64 for float64)."""
    return (logits if logits.dtype == torch.float64 else logits.float()) / temperature

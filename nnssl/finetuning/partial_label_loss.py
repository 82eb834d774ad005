"""The losses for partial labels, and how one replaces the innermost part of nnU-Net's loss."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch.nn import functional

from nnssl.core.distributed import all_reduce_sum
from nnssl.core.errors import UserError
from nnssl.core.sending import send

_SKIPPED = -100  # torch's own number for a label that is not counted


def merge_missing(logits: Tensor, annotated: Tensor) -> Tensor:
    """Return logits whose background holds the probability of the classes that are not annotated.

    Args:
        logits: (B, C, ...), background first.
        annotated: (B, C) bool on any device, with a true background.

    Returns:
        (B, C, ...) logits of the same softmax, the missing classes at minus infinity and the background at the
        logarithm of the sum of its and their exponentials; `logits` itself where nothing is missing.
    """
    if bool(annotated.all()):
        return logits
    known = _over_voxels(annotated, logits)
    absorbed = ~known
    absorbed[:, 0] = True
    background = logits.masked_fill(~absorbed, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(~known[:, 1:], -torch.inf)], 1)


class PartialLabelLoss(nn.Module):
    """Cross-entropy plus Dice of mutually exclusive classes, as nnU-Net's `DC_and_CE_loss` where all are annotated.

    Computed in float32 (float64 for float64 logits) whatever the autocast.

    Args:
        batch_dice: take the sums of a class over all the cases of the batch that have it annotated, and its Dice of
            these; otherwise the mean Dice over the pairs of a case and a class annotated in it.
        smooth: added to numerator and denominator of the Dice.
        do_bg: count the (merged) background as a class of the Dice.
        ddp: with `batch_dice`, over the cases of all processes.
        ignore_label: label of the voxels that do not count.
        weight_ce, weight_dice: factors of the two terms.
    """

    def __init__(
        self,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        do_bg: bool = False,
        ddp: bool = False,
        ignore_label: int | None = None,
        weight_ce: float = 1.0,
        weight_dice: float = 1.0,
    ) -> None:
        super().__init__()
        self.batch_dice, self.smooth, self.do_bg, self.ddp = batch_dice, smooth, do_bg, ddp
        self.ignore_label, self.weight_ce, self.weight_dice = ignore_label, weight_ce, weight_dice

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, C, ...), background first.
            target: (B, 1, ...) labels of any dtype. A label that the case says is not annotated counts as (merged)
                background, where it belongs; `nnssl_annotated_labels check` finds such voxels.
            annotated: (B, C) bool, background always true. On the CPU, asking it does not wait for the device.

        Returns:
            () loss; 0 with a gradient of 0 where no case has anything annotated.

        Raises:
            ValueError: shapes do not fit.
        """
        _check_shapes(logits, target, annotated, 1)
        labelled = annotated[:, 1:].any(1, keepdim=True)
        with torch.autocast(logits.device.type, enabled=False):
            log_p = merge_missing(_precise(logits), annotated).log_softmax(1)
            labels, counted = self._labels(target, annotated, labelled)
            cross_entropy = functional.nll_loss(
                log_p, labels.masked_fill(~counted, _SKIPPED)[:, 0], ignore_index=_SKIPPED, reduction="sum"
            ) / counted.sum().clamp_min(1)
            first = 0 if self.do_bg else 1
            probability = log_p[:, first:].exp()
            truth = torch.zeros_like(log_p).scatter_(1, labels, 1)[:, first:]
            if self.ignore_label is not None:
                probability, truth = probability * counted, truth * counted
            known = (annotated & labelled)[:, first:]
            dice = _mean_dice(probability, truth, known, self.smooth, self.batch_dice, self.ddp)
            return self.weight_ce * cross_entropy - self.weight_dice * dice

    def _labels(self, target: Tensor, annotated: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as indices of classes, 0 for what is not annotated, and which voxels count; both (B, 1, ...)."""
        counted = _over_voxels(labelled, target).expand(target.shape)
        if self.ignore_label is not None:
            counted = counted & (target != self.ignore_label)
        labels = target.masked_fill(~counted, 0).long()
        if not bool(annotated.all()):
            meant = _beside(labels, annotated).gather(1, labels.flatten(1)).view_as(labels)
            labels = labels.masked_fill(~meant, 0)
        return labels, counted


class PartialRegionLoss(nn.Module):
    """Binary cross-entropy plus Dice of overlapping regions, as nnU-Net's `DC_and_BCE_loss` where all are annotated.

    Every region has a logit of its own, so that one that is not annotated is simply left out. Computed in float32
    (float64 for float64 logits) whatever the autocast.

    Args:
        batch_dice, smooth, ddp: as in `PartialLabelLoss`.
        use_ignore_label: the target's last channel marks the voxels that do not count. The cross-entropy is then the
            sum over the regions and not their mean, as it is in nnU-Net.
        weight_ce, weight_dice: factors of the two terms.
    """

    def __init__(
        self,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        ddp: bool = False,
        use_ignore_label: bool = False,
        weight_ce: float = 1.0,
        weight_dice: float = 1.0,
    ) -> None:
        super().__init__()
        self.batch_dice, self.smooth, self.ddp, self.use_ignore_label = batch_dice, smooth, ddp, use_ignore_label
        self.weight_ce, self.weight_dice = weight_ce, weight_dice

    def forward(self, logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
        """Return the loss.

        Args:
            logits: (B, R, ...).
            target: (B, R, ...) 0 and 1 of any dtype, with one channel more for the ignored voxels.
            annotated: (B, R) bool on any device.

        Returns:
            () loss; 0 with a gradient of 0 where no case has anything annotated.

        Raises:
            ValueError: shapes do not fit.
        """
        regions, voxels = logits.shape[1], tuple(range(2, logits.ndim))
        _check_shapes(logits, target, annotated, regions + self.use_ignore_label)
        with torch.autocast(logits.device.type, enabled=False):
            logits = _precise(logits)
            truth, known = target[:, :regions].to(logits.dtype), _beside(logits, annotated).to(logits.dtype)
            error = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            probability = logits.sigmoid()
            if self.use_ignore_label:
                counted = 1 - target[:, regions:].to(logits.dtype)
                error, probability, truth = error * counted, probability * counted, truth * counted
                counts = counted.sum(voxels).expand_as(known) / regions
            else:
                counts = torch.full_like(known, error[0, 0].numel())
            cross_entropy = (error.sum(voxels) * known).sum() / (counts * known).sum().clamp_min(1e-8)
            dice = _mean_dice(probability, truth, annotated, self.smooth, self.batch_dice, self.ddp)
            return self.weight_ce * cross_entropy - self.weight_dice * dice


def _mean_dice(
    probability: Tensor, truth: Tensor, annotated: Tensor, smooth: float, batch_dice: bool, ddp: bool
) -> Tensor:
    """Mean soft Dice over what is annotated (B, C), 0 where that is nothing, with settings as in `PartialLabelLoss`.

    `probability` and `truth` (B, C, ...) are 0 where a voxel does not count.
    """
    voxels = tuple(range(2, probability.ndim))
    known = _beside(probability, annotated).to(probability.dtype)
    sums = torch.stack([(probability * truth).sum(voxels), probability.sum(voxels) + truth.sum(voxels), known]) * known
    if batch_dice:
        sums = sums.sum(1)
        sums = all_reduce_sum(sums) if ddp else sums
    overlap, size, cases = sums
    known = (cases > 0).to(overlap)  # after a sum, `cases` is a number
    dice = (2 * overlap + smooth) / (size + smooth).clamp_min(1e-8)
    return (dice * known).sum() / known.sum().clamp_min(1)


def _over_voxels(of_case: Tensor, like: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, ...) on the device of `like`."""
    return _beside(like, of_case).view(*of_case.shape, *[1] * (like.ndim - 2))


def _beside(like: Tensor, of_case: Tensor) -> Tensor:
    """(B, C) on the device of `like`, without a wait for it."""
    return of_case if of_case.device == like.device else send([of_case], like.device)[0]


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_shapes(logits: Tensor, target: Tensor, annotated: Tensor, channels: int) -> None:
    shape = logits.shape
    if logits.ndim < 3 or target.shape != (shape[0], channels, *shape[2:]) or annotated.shape != shape[:2]:
        raise ValueError(f"logits (B, C, ...), target (B, {channels}, ...) and annotated (B, C) must fit, got "
                         f"{tuple(shape)}, {tuple(target.shape)} and {tuple(annotated.shape)}")  # fmt: skip


class AnnotatedLoss(nn.Module):
    """A loss of (output, target), as nnU-Net's steps call it, that knows what the cases of the batch have annotated.

    Args:
        loss: `PartialLabelLoss` or `PartialRegionLoss`, or nnU-Net's wrapper for deep supervision around one.

    Attributes:
        annotated: (B, C) bool of the next batch; set it before every call.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.annotated = torch.ones(0, 0, dtype=torch.bool)

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the loss () of logits (B, C, ...) and their target, or of one list of each with deep supervision."""
        annotated = [self.annotated] * len(output) if isinstance(output, (list, tuple)) else self.annotated
        loss: Tensor = self.loss(output, target, annotated)
        return loss


def partial_label_loss(loss: Any, trainer: str) -> AnnotatedLoss:
    """Return the loss for partial labels with the settings, and the weights of deep supervision, of nnU-Net's.

    Args:
        loss: what `nnUNetTrainer._build_loss` returns.
        trainer: its name, for messages.

    Raises:
        UserError: the trainer has another loss than nnU-Net's Dice with cross-entropy.
    """
    deep = isinstance(loss, DeepSupervisionWrapper)
    inner = loss.loss if deep else loss
    if type(inner) not in (DC_and_CE_loss, DC_and_BCE_loss):
        raise UserError(f"{trainer} trains with {type(inner).__name__}, and partial labels need nnU-Net's Dice and "
                        f"cross-entropy; use nnUNetTrainer_PartialLabels")  # fmt: skip
    dice = {"batch_dice": inner.dc.batch_dice, "smooth": inner.dc.smooth, "ddp": inner.dc.ddp}
    weights = {"weight_ce": inner.weight_ce, "weight_dice": inner.weight_dice}
    new: nn.Module
    if isinstance(inner, DC_and_CE_loss):
        new = PartialLabelLoss(**dice, **weights, do_bg=inner.dc.do_bg, ignore_label=inner.ignore_label)
    else:
        new = PartialRegionLoss(**dice, **weights, use_ignore_label=inner.use_ignore_label)
    return AnnotatedLoss(DeepSupervisionWrapper(new, loss.weight_factors) if deep else new)

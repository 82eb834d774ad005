"""Batch normalisation over the rows of all ranks, on any device (torch.nn.SyncBatchNorm refuses the CPU)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from nnssl.core.distributed import all_reduce_sum, gather_rows, world_size


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Turn every nn.BatchNorm1d, 2d and 3d inside a module, or the module itself, into its synchronised subclass.

    This changes the module in place and returns it. Parameters, buffers, hooks and state-dict keys stay, and so do
    layers of other classes, even subclasses of torch's.
    """
    for layer in module.modules():
        for plain, synchronised in _SYNCHRONISED.items():
            if type(layer) is plain:
                layer.__class__ = synchronised
    return module


class _Synchronised(_BatchNorm):
    """The forward pass of the three layers.

    In training with several ranks, mean and variance are those of all ranks' rows (the numbers of rows may differ), and
    the running variance takes the unbiased one, as in nn.BatchNorm. Otherwise, and if no rank has a row, this is
    nn.BatchNorm. The gradients of weight and bias are this rank's share, as DistributedDataParallel expects.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...).

        Raises:
            ValueError: All ranks together have a single value per channel.
        """
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        statistics = _global_statistics(x)
        if statistics is None:
            return super().forward(x)  # keeps the running statistics where there are no rows
        mean, squares, count = statistics
        variance = squares / count
        if self.track_running_stats:
            self._update_running(mean, squares / (count - 1))
        normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)
        return normalised

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Without a momentum: the plain average over all batches.
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), weight)


class SyncBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """nn.BatchNorm1d with the statistics of all ranks."""


class SyncBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """nn.BatchNorm2d with the statistics of all ranks."""


class SyncBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """nn.BatchNorm3d with the statistics of all ranks."""


_SYNCHRONISED: dict[type[_BatchNorm], type[_Synchronised]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


@torch.no_grad()
def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mean (C,), sum of squared deviations (C,) and number of values per channel () over all ranks, in float64.

    None if no rank has a value.
    """
    channels = x.shape[1]
    count = x.numel() // channels
    mine = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count:
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0)
        mine[:channels], mine[channels:-1], mine[-1] = mean, variance * count, count
    rows = gather_rows(mine[None], [1] * world_size())
    means, squares, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    total = counts.sum()
    # The total can only be 0 or 1 if this rank has less than two values: most calls need not wait for the device.
    if count == 0 and total == 0:
        return None
    if count < 2 and total < 2:
        raise ValueError(
            f"Expected more than 1 value per channel on all ranks together when training, got {list(x.shape)} here"
        )
    # Deviations within ranks plus deviations of the ranks' means avoid a difference of large sums (Chan et al. 1979).
    mean = (counts * means).sum(0) / total
    return mean, (squares + counts * (means - mean).square()).sum(0), total


class _Normalise(torch.autograd.Function):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias, where mean and variance are functions of all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        # Statistics and weights are float32 for half-precision x, as in torch's own layer.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = torch.ones_like(mean, dtype=dtype) if weight is None else weight.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, scale, mean.to(dtype), variance.to(dtype), count.to(dtype))
        ctx.eps = eps
        return functional.batch_norm(x, mean.to(dtype), variance.to(dtype), scale, shift, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, variance, count = ctx.saved_tensors
        if x.numel():
            # torch's fused backward pass with fixed statistics: its gradients of weight and bias are also the two sums
            # over rows that the gradient through the statistics needs.
            through_x, for_scale, for_shift = torch.ops.aten.native_batch_norm_backward(
                gradient, x, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:  # native_batch_norm_backward would crash, and the other ranks wait for the sums
            through_x, for_scale, for_shift = torch.zeros_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
        sums = all_reduce_sum(torch.stack([for_scale, for_shift])) / count
        slope = -scale * torch.rsqrt(variance + ctx.eps)
        through_x += functional.batch_norm(x, mean, variance, slope * sums[0], slope * sums[1], False, 0.0, ctx.eps)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return through_x, for_scale if needs_weight else None, for_shift if needs_bias else None, None, None, None, None

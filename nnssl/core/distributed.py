"""Processes that train together, and the device that they train on; without a process group there is one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from nnssl.core.errors import UserError

log = logging.getLogger("nnssl")


def world_size() -> int:
    """Return the number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process' number, 0 <= rank < world_size(); 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Tell whether this process is the one that writes files and log lines."""
    return rank() == 0


def row_counts(x: Tensor) -> list[int]:
    """Return x.shape[0] of every rank, in rank order. Every rank must call it."""
    if world_size() == 1:
        return [x.shape[0]]
    mine = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    return [int(count) for count in torch.cat(counts).tolist()]


def gather_rows(x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all ranks in rank order, with gradient; every rank must call it.

    The backward pass sums the ranks' gradients and cuts out this rank's rows, so that each rank gets the gradient of
    the sum of all ranks' losses; it is a collective too, so x must require a gradient on all ranks or on none.

    Args:
        x: (n_r, ...) of any dtype; n_r may differ between ranks and may be 0, the other axes and the dtype may not.
        counts: n_r of every rank, where they are known: saves their exchange (and a wait for the device).

    Returns:
        (sum of n_r, ...); x itself without a process group.

    Raises:
        ValueError: x has no axis.
    """
    if x.ndim == 0:
        raise ValueError("gather_rows needs a tensor with at least one axis, got a scalar")
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherRows.apply(x, list(row_counts(x) if counts is None else counts))
    return gathered


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor of the same shape over all ranks, with gradient (which is summed over the ranks too).

    Args:
        x: any shape; as in `gather_rows`, all ranks or none require a gradient.

    Returns:
        The sum, of x's shape; x itself without a process group.
    """
    if world_size() == 1:
        return x
    total: Tensor = _AllReduceSum.apply(x)
    return total


def gather_objects(x: Any) -> list[Any]:
    """Collect a picklable object of every rank, in rank order. Every rank must call it."""
    if world_size() == 1:
        return [x]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, x)
    return gathered


def barrier() -> None:
    """Wait until every rank has come here."""
    if world_size() > 1:
        dist.barrier()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.start = sum(counts[: rank()])
        ctx.rows = counts[rank()]
        longest = max(counts)
        # The collective wants equal shapes: pad at the end of the first axis, cut afterwards.
        mine = functional.pad(x.detach(), [0, 0] * (x.ndim - 1) + [0, longest - x.shape[0]]).contiguous()
        rows = [torch.empty_like(mine) for _ in counts]
        dist.all_gather(rows, mine)
        return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient)[ctx.start : ctx.start + ctx.rows], None


def started_by_torchrun() -> bool:
    """Whether torchrun (or another launcher that speaks its variables) made this process."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def number_of_processes(num_gpus: int) -> int:
    """Processes that will train together."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else num_gpus


def usual_device() -> str:
    """The device of a command without -device: cuda where PyTorch sees a card, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(device: str | None, num_gpus: int = 1) -> str:
    """Return the device to compute on: the given one if it is there, or for None `usual_device`.

    Several processes without a device are for cards: on the CPU they must be asked for.

    Raises:
        UserError: as `check_device`.
    """
    if device is None:
        device = "cuda" if num_gpus > 1 else usual_device()  # who counts cards means cards
        if device == "cpu":
            log.warning("PyTorch sees no CUDA card, so the CPU is used; -device cpu says so without this line")
    check_device(device, num_gpus)
    return device


def check_device(device: str, num_gpus: int = 1) -> None:
    """Refuse a device that is not there.

    Raises:
        UserError: no CUDA, fewer cards than asked for, or a device that is neither cuda nor cpu.
    """
    if num_gpus < 1:
        raise UserError("-num_gpus takes a number from 1 on")
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"there is no device {device!r}; use -device cuda or -device cpu")
    if not torch.cuda.is_available():
        raise UserError("PyTorch sees no CUDA card; use -device cpu, or install a PyTorch build for your driver")
    if not started_by_torchrun() and num_gpus > torch.cuda.device_count():
        raise UserError(f"-num_gpus {num_gpus} is more than the {torch.cuda.device_count()} cards that PyTorch sees")

"""How many parameters a training trains: the x axis of vox2vec's Fig. 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

_OF_PARAMETER_SIZE = ("exp_avg", "momentum_buffer")  # Adam and its kin, SGD


def trainable_parameters(fold_folder: Path) -> int | None:
    """Values that the optimiser of a finished training has moved; None where it keeps no state of them.

    Read off the optimiser's state in `checkpoint_final.pth`, so that a frozen backbone is not counted and one that was
    unfrozen on the way is. Outputs of deep supervision whose weight in the loss is 0 are never moved and not counted.
    """
    import torch

    # nnU-Net's checkpoints hold numpy values and cannot be read with weights_only; this one the benchmark made itself
    content = torch.load(fold_folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    return count_trained(content["optimizer_state"])


def count_trained(optimiser: dict[str, Any]) -> int | None:
    """The same from the state of an optimiser."""
    moved = [_size(state) for state in optimiser["state"].values()]
    return sum(moved) or None


def _size(state: dict[str, Any]) -> int:
    found = (state.get(name) for name in _OF_PARAMETER_SIZE)
    return next((tensor.numel() for tensor in found if isinstance(tensor, Tensor)), 0)

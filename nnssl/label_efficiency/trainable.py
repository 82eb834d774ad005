"""How many parameters a training trains: the x axis of vox2vec's Fig. 2."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.data.nnunet_checkpoint import read_nnunet_checkpoint
from nnssl.errors import UserError

_OF_PARAMETER_SIZE = ("exp_avg", "momentum_buffer")  # Adam and its kin, SGD

log = logging.getLogger("nnssl")


def trainable_parameters(fold_folder: Path) -> int | None:
    """Values that the optimiser of a finished training has moved; None where it keeps no state of them.

    Read off the optimiser's state in `checkpoint_final.pth`, so that a frozen backbone is not counted and one that was
    unfrozen on the way is. Outputs of deep supervision whose weight in the loss is 0 are never moved and not counted.
    Where a trainer of the user's own wrote a checkpoint that is not opened, they are unknown too, and that is said.
    """
    file = fold_folder / "checkpoint_final.pth"
    try:
        return count_trained(read_nnunet_checkpoint(file)["optimizer_state"])
    except UserError as error:
        log.warning(f"the number of trained parameters is left out: {error}")
        return None


def count_trained(optimiser: dict[str, Any]) -> int | None:
    """The same from the state of an optimiser."""
    moved = [_size(state) for state in optimiser["state"].values()]
    return sum(moved) or None


def _size(state: dict[str, Any]) -> int:
    found = (state.get(name) for name in _OF_PARAMETER_SIZE)
    return next((tensor.numel() for tensor in found if isinstance(tensor, Tensor)), 0)

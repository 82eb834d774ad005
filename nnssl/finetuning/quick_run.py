"""Number of epochs and iterations of a training without a class of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nnssl.errors import UserError

LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")


def set_lengths(trainer: Any, block: Mapping[str, Any]) -> None:
    """Set an nnU-Net trainer's lengths: those of `nnssl_num_epochs` and so on, else those of the plans' block.

    Raises:
        UserError: a value is no whole number of at least 1.
    """
    for name in LENGTHS:
        variable = f"nnssl_{name}"
        value = os.environ.get(variable) or block.get(name)
        if value is None:
            continue
        if not str(value).isdecimal() or int(value) < 1:
            raise UserError(f"{variable} takes a whole number of at least 1, not {value!r}; type: export {variable}=10")
        setattr(trainer, name, int(value))

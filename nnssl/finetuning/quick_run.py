"""Length and learning rate of a training without a class of its own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from nnssl.core.names import shown
from nnssl.errors import UserError

LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
RATE = "initial_lr"
_WHOLE = re.compile(r"0*[1-9][0-9]{0,8}")


def apply_settings(trainer: Any, block: Mapping[str, Any]) -> None:
    """Set an nnU-Net trainer's lengths and rate: those of `nnssl_num_epochs` and so on, else those of the plans' block.

    Raises:
        UserError: a length is no whole number of at least 1, or the rate is no number above 0.
    """
    for name in LENGTHS:
        value = _given(name, block)
        if value is None:
            continue
        if not _WHOLE.fullmatch(value):
            raise UserError(f"nnssl_{name} takes a whole number from 1 to 999999999, not {shown(value)}; type: export "
                            f"nnssl_{name}=10")  # fmt: skip
        setattr(trainer, name, int(value))
    if (value := _given(RATE, block)) is not None:
        setattr(trainer, RATE, _rate(value))


def _given(name: str, block: Mapping[str, Any]) -> str | None:
    value = os.environ.get(f"nnssl_{name}") or block.get(name)
    return None if value is None else str(value)


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"nnssl_{RATE} takes a number above 0, not {shown(value)}; type: export nnssl_{RATE}=0.001")
    return rate

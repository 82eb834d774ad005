"""An end before the last epoch, where the loss of the held-out volumes no longer falls."""

from __future__ import annotations

import math
from typing import Any

from nnssl.pretraining.metrics import Row

_STATE = "stopping_state"  # entry of a checkpoint


class Stopping:
    """Counts the epochs since the lowest loss of the held-out volumes.

    Args:
        patience: epochs after which the run ends; None: it does not end early, and nothing is counted.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.lowest, self.waited = math.inf, 0

    @property
    def is_due(self) -> bool:
        """Whether the run ends here."""
        return self.patience is not None and self.waited >= self.patience

    def add(self, row: Row) -> bool:
        """Count an epoch by its row; whether its loss is the lowest so far."""
        if self.patience is None or "val_loss" not in row:
            return False
        improved = bool(row["val_loss"] < self.lowest)
        self.lowest = min(self.lowest, row["val_loss"])
        self.waited = 0 if improved else self.waited + 1
        return improved

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint; none without patience."""
        return {} if self.patience is None else {_STATE: {"lowest": self.lowest, "waited": self.waited}}

    def load_state(self, checkpoint: dict[str, Any]) -> None:
        """Go on with a checkpoint's counts."""
        found = checkpoint.get(_STATE)
        if found is not None:
            self.lowest, self.waited = float(found["lowest"]), int(found["waited"])

"""Running means of an epoch, `metrics.jsonl`, the line of an epoch, the warning of a collapse."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nnssl.core.files import replacing
from nnssl.core.json_files import checked
from nnssl.core.own_files import EpochRow
from nnssl.errors import UserError

Row = dict[str, Any]
_MEND_ROW = "remove that line, or move the file away: it is begun anew"


@dataclass
class PendingStep:
    """Metrics of a step of a stream that the device may still be computing."""

    stream: Literal["train", "val"]
    step: int
    cases: list[str]
    names: list[str]
    values: Tensor


class RunningMeans:
    """Sums of named scalars; plain numbers, so that a checkpoint can hold them."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums, self.count = dict(sums or {}), count

    def add(self, names: Sequence[str], values: Sequence[float]) -> None:
        """One step's values."""
        for name, value in zip(names, values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self, prefix: str = "") -> dict[str, float]:
        """Mean of every name."""
        return {prefix + name: value / self.count for name, value in self.sums.items()}

    def state(self) -> Row:
        """What a checkpoint keeps."""
        return {"sums": dict(self.sums), "count": self.count}


def read_rows(file: Path) -> list[Row]:
    """Rows of `metrics.jsonl`; none where it does not exist. A last line that a kill cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    lines = file.read_bytes().splitlines() if file.is_file() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        try:
            rows.append(checked(json.loads(line), EpochRow, where, _MEND_ROW))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{where} is no JSON; {_MEND_ROW}") from error
    return rows


def write_rows(file: Path, rows: list[Row]) -> None:
    """All rows, replacing the file in one piece."""
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def memory_gib(device: torch.device) -> float:
    """Peak memory: allocated on the card for CUDA, else resident in the main process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def epoch_line(row: Row, num_epochs: int) -> str:
    """One line for the terminal and the log."""
    parts = [f"epoch {row['epoch']}/{num_epochs}", f"loss {row['loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val {row['val_loss']:.4f}")
    parts += [
        f"std {row['embedding_std']:.4f}",
        *([f"rank {row['effective_rank']:.1f}"] if "effective_rank" in row else []),
        *_probed(row),
        f"lr {row['learning_rate']:.2e}",
        f"{row['samples_per_second']:.2f} samples/s",
        f"data-wait {100 * row['data_wait']:.1f} %",
        f"{row['memory_gib']:.2f} GiB",
        f"{row['seconds']:.1f} s",
    ]
    return "  ".join(parts)


def _probed(row: Row) -> list[str]:
    """Dice of the probe where it is due, and its share of the time."""
    scores = [f"{row[key]:.3f}" for key in ("probe_linear_dice", "probe_nonlinear_dice") if key in row]
    parts = [f"probe {' / '.join(scores)} Dice"] if scores else []
    return parts + ([f"probe-time {100 * row['probe_share']:.1f} %"] if "probe_share" in row else [])


def collapse_warning(row: Row) -> str | None:
    """A sentence where the embeddings of the epoch have (nearly) become one point."""
    healthy = 1 / math.sqrt(row["embedding_dim"])
    if row["embedding_std"] >= 0.1 * healthy:
        return None
    return (
        f"the embeddings are collapsing: their deviation is {row['embedding_std']:.4f}, healthy is about "
        f"{healthy:.4f}; lower the learning rate with -o learning_rate=..., or look at views.png"
    )

"""Health of a run without labels: figures of its embeddings, and warnings where they collapse."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from nnssl.methods.base import StepOutput
from nnssl.networks.contrastive import l2_normalise
from nnssl.pretraining.metrics import Row

STEPS = 32  # last steps of an epoch, whose rows count
ROWS_A_STEP = 32  # 1,024 in all: of many volumes, and cheap


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean over the dimensions of the deviation over the rows (M, d) after L2 normalisation.

    Healthy is about 1/sqrt(d), collapsed is 0 (SimSiam, section 4.1).
    """
    if len(embeddings) < 2:
        return embeddings.new_zeros((), dtype=torch.float32)
    return l2_normalise(embeddings.detach().float()).std(dim=0).mean()


def effective_rank(embeddings: Tensor) -> float:
    """Exponential of the entropy of the singular values, as shares of their sum (Roy & Vetterli, EUSIPCO 2007).

    The rows (M, d) are L2-normalised and centred first; RankMe (Garrido et al., ICML 2023) takes the same measure of
    rows that are not. It is 1 where all rows are on one line or in one point, and at most min(M - 1, d).
    """
    if len(embeddings) < 2:
        return 1.0
    rows = l2_normalise(embeddings.double())
    rows = rows - rows.mean(0)
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).sqrt()
    if float(values.max()) < 1e-6:  # what rounding leaves of rows that are the same
        return 1.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the two unit vectors of a pair (Wang & Isola, ICML 2020, alpha = 2): 0 is the best.

    Rows (M, d) of the same number belong together.
    """
    return float((l2_normalise(first) - l2_normalise(second)).square().sum(1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Logarithm of the mean Gaussian potential of two different rows (Wang & Isola, ICML 2020, t = 2).

    0 where all of the rows (M, d), two at least, are the same; about -4 where they spread evenly over a sphere of many
    dimensions.
    """
    rows = l2_normalise(embeddings)
    potential = (2 - 2 * rows @ rows.T).clamp_(min=0).mul_(-2).exp_().fill_diagonal_(0)
    return float((potential.sum(dtype=torch.float64) / (len(rows) * (len(rows) - 1))).log())


class Health:
    """Rows of the last steps of an epoch, and the figures over them; those of this process.

    Which rows is a function of their number alone: nothing is drawn.

    Args:
        steps_per_epoch: of the run.
        device: of the rows.
        state: of an epoch that was interrupted, from `state`.
    """

    def __init__(self, steps_per_epoch: int, device: torch.device, state: dict[str, Tensor] | None = None) -> None:
        self.first = max(0, steps_per_epoch - STEPS)
        self.steps_per_epoch = steps_per_epoch
        self._kept: dict[str, list[Tensor]] = {name: [rows.to(device)] for name, rows in (state or {}).items()}

    @torch.no_grad()
    def add(self, step: int, output: StepOutput) -> None:
        """Look at training step `step` (from 0, over all epochs)."""
        if step % self.steps_per_epoch < self.first:
            return
        self._keep("embeddings", output.embeddings)
        if output.pairs is not None:
            for name, rows in zip(("first", "second"), output.pairs, strict=True):
                self._keep(name, rows)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint in the middle of an epoch keeps."""
        return {name: torch.cat(parts).cpu() for name, parts in self._kept.items()}

    @torch.no_grad()
    def finish_epoch(self) -> Row:
        """Return the figures by name, of `health_rows` rows, and begin the next epoch.

        Without pairs, alignment and uniformity are left out; without a call of `add`, everything is.
        """
        kept = {name: torch.cat(parts) for name, parts in self._kept.items()}
        self._kept = {}
        if not kept:
            return {}
        (rows,) = _finite(kept["embeddings"])
        row: Row = {"effective_rank": effective_rank(rows), "health_rows": len(rows)}
        if "first" in kept:
            first, second = _finite(kept["first"], kept["second"])
            if len(first) > 1:
                row["alignment"] = alignment(first, second)
                row["uniformity"] = (uniformity(first) + uniformity(second)) / 2
        return row

    def _keep(self, name: str, rows: Tensor) -> None:
        count = min(ROWS_A_STEP, len(rows))
        chosen = torch.arange(count, device=rows.device) * len(rows) // max(count, 1)  # evenly over all of them
        self._kept.setdefault(name, []).append(rows.detach()[chosen].float())


def _finite(*columns: Tensor) -> list[Tensor]:
    """The rows that are finite in all columns."""
    good = torch.stack([column.isfinite().all(1) for column in columns]).all(0)
    return [column[good] for column in columns]


FALLEN = 0.1  # share of the best rank of a run
PATIENCE = 3  # epochs


@dataclass
class RankHistory:
    """Best effective rank of the epochs of a run, and how many of the last ones in a row fell below a tenth of it."""

    best: float = 0.0
    low_epochs: int = 0

    def add(self, row: Row) -> Row:
        """Count the figures of an epoch.

        Returns:
            They, and after three low epochs in a row `rank_fallen_from`, the best rank.
        """
        rank = row.get("effective_rank")
        if rank is None:
            return row
        self.best = max(self.best, rank)
        self.low_epochs = self.low_epochs + 1 if rank < FALLEN * self.best else 0
        return {**row, "rank_fallen_from": self.best} if self.low_epochs >= PATIENCE else row

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return asdict(self)


def fall_warning(row: Row, cause: str | None) -> str | None:
    """Words for the line of an epoch whose rank has been low for three epochs, with the method's likely causes."""
    if "rank_fallen_from" not in row:
        return None
    likely = f"; likely {cause}" if cause else ""
    return (
        f"the effective rank has been below a tenth of its best, {row['rank_fallen_from']:.1f}, for {PATIENCE} epochs "
        f"or more{likely}"
    )


def collapse_warning(row: Row, cause: str | None) -> str | None:
    """A sentence where the embeddings of the epoch have (nearly) become one point, or fill few dimensions.

    Vectors that a normalisation spreads keep their deviation at any rank. n rows of d numbers have a rank of at most
    min(n - 1, d); those of runs that learn have a third of it or more, and the warning begins below its square root.
    """
    healthy = 1 / math.sqrt(row["embedding_dim"])
    most = min(row.get("health_rows", 1) - 1, row["embedding_dim"])
    rank = row.get("effective_rank", math.inf)
    if row["embedding_std"] >= 0.1 * healthy and rank >= math.sqrt(most):
        return None
    of_rank = f", their effective rank {rank:.1f} of at most {most}" if most > 0 else ""
    fix = f"likely {cause}" if cause else "lower the learning rate with -o learning_rate=..., or look at views.png"
    return (
        f"the embeddings are collapsing: their deviation is {row['embedding_std']:.4f}, healthy is about "
        f"{healthy:.4f}{of_rank}; {fix}"
    )

"""All that is measured of a run: the one owner of an epoch's row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnssl.core.distributed import is_main
from nnssl.data.loader import LoadedBatch, Stream
from nnssl.methods.base import StepOutput
from nnssl.networks.contrastive import l2_normalise
from nnssl.pretraining.cost import EnergyMeter, EpochCost, Use
from nnssl.pretraining.metrics import Row, RunningMeans, Watch, memory_gib
from nnssl.pretraining.probe import OnlineProbe
from nnssl.pretraining.setup import Setup


class Meters:
    """Means of every step's terms, health of the embeddings, time, energy and the probe's scores.

    Args:
        setup: of the run.
        device: that it runs on.
        probe: the main process's, if the run has one.
    """

    def __init__(self, setup: Setup, device: torch.device, probe: OnlineProbe | None) -> None:
        self.setup, self.device, self.probe = setup, device, probe
        self.watch = Watch(setup.folder, device)
        self.health = Health(setup.config.steps_per_epoch, device)
        self.cost = EpochCost(EnergyMeter(device))
        self.embedding_dim = 0

    def add(
        self, stream: Stream, step: int, batch: LoadedBatch, output: StepOutput, stop: bool, norm: Tensor | None = None
    ) -> None:
        """Count a step; `norm` is that of the gradient, for training steps.

        Raises:
            UserError: the loss or the gradient of the step before is not finite.
        """
        terms = {"loss": output.loss.detach(), **output.terms, "embedding_std": embedding_std(output.embeddings)}
        if norm is not None:
            terms["gradient_norm"] = norm
            self.embedding_dim = output.embeddings.shape[1]
            if is_main():
                self.health.add(step, output)
        self.watch.add(stream, step, batch, terms, stop)

    def begin_validation(self) -> None:
        """Reset the validation's means."""
        self.watch.means["val"] = RunningMeans()

    def settle(self) -> None:
        """Read the training steps that are queued."""
        self.watch.settle()
        self.cost.lap("training")
        self.count_probe("training")

    def count_probe(self, source: Use) -> None:
        """What the probe took of a share of the time becomes its own."""
        if self.probe is not None:
            self.cost.move(source, "probe", self.probe.take_seconds())

    def finish_epoch(self, epoch: int, step: int, learning_rate: float) -> Row:
        """The row of an epoch, over all processes, which must all call this; the next epoch begins.

        Args:
            epoch: number of finished epochs.
            step: number of finished steps.
            learning_rate: of the last step.
        """
        self.cost.lap("other")
        probed = self.probe.finish_epoch(epoch) if self.probe is not None else {}
        self.cost.lap("other")
        self.count_probe("other")
        row: Row = {
            "epoch": epoch,
            "step": step,
            **self.watch.means["train"].means(),
            **(self.watch.means["val"].means("val_") if len(self.setup.val) else {}),
            "embedding_dim": self.embedding_dim,
            **self.health.finish_epoch(),
            "device": self.device.type,
            "learning_rate": learning_rate,
            "memory_gib": memory_gib(self.device),
            **({"probe_share": self.cost.share("probe")} if self.probe is not None else {}),
            **self.cost.finish_epoch(),
            **probed,
        }
        self.watch.means["train"] = RunningMeans()
        return row

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint, which may be written in the middle of an epoch."""
        return {
            "train_means": self.watch.means["train"].state(),
            "embedding_dim": self.embedding_dim,
            "health_state": self.health.state(),
            "cost_state": self.cost.state(),
            "probe_state": self.probe.state() if self.probe is not None else None,
        }

    def load_state(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the epoch of a checkpoint."""
        self.watch.means["train"] = RunningMeans(**checkpoint["train_means"])
        self.embedding_dim = checkpoint["embedding_dim"]
        self.health = Health(self.setup.config.steps_per_epoch, self.device, checkpoint.get("health_state"))
        self.cost = EpochCost(self.cost.meter, checkpoint.get("cost_state"))
        if self.probe is not None and checkpoint.get("probe_state") is not None:
            self.probe.load_state(checkpoint["probe_state"])


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

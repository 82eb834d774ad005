"""All that is measured of a run: the one owner of an epoch's row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnssl.core.distributed import is_main
from nnssl.data.loader import LoadedBatch, Stream
from nnssl.methods.base import StepOutput
from nnssl.pretraining.cost import EnergyMeter, EpochCost, Use
from nnssl.pretraining.health import Health, RankHistory, embedding_std
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
        self.watch = Watch(setup.folder, device, setup.flag)
        self.health = Health(setup.config.steps_per_epoch, device)
        self.ranks = RankHistory()
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
            **self.ranks.add(self.health.finish_epoch()),
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
            "rank_state": self.ranks.state(),
            "cost_state": self.cost.state(),
            "probe_state": self.probe.state() if self.probe is not None else None,
        }

    def load_state(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the epoch of a checkpoint."""
        self.watch.means["train"] = RunningMeans(**checkpoint["train_means"])
        self.embedding_dim = checkpoint["embedding_dim"]
        self.health = Health(self.setup.config.steps_per_epoch, self.device, checkpoint.get("health_state"))
        self.ranks = RankHistory(**checkpoint.get("rank_state", {}))
        self.cost = EpochCost(self.cost.meter, checkpoint.get("cost_state"))
        if self.probe is not None and checkpoint.get("probe_state") is not None:
            self.probe.load_state(checkpoint["probe_state"])

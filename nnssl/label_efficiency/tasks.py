"""One training with nnU-Net's own command: its state on the disk and the line to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnssl.core.json_files import read_json
from nnssl.core.own_files import SummaryFile
from nnssl.data.folders import dataset_argument
from nnssl.errors import UserError
from nnssl.label_efficiency.methods import Method
from nnssl.label_efficiency.subsets import Amount, Fold
from nnssl.label_efficiency.workspace import Workspace

State = Literal["missing", "begun", "trained", "finished"]
_CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Task:
    """A method on one subset."""

    workspace: Workspace
    method: Method
    fold: Fold
    device: str

    @property
    def key(self) -> str:
        """Name of its log."""
        return f"{self.method.name}_fold_{self.fold.number}"

    @property
    def folder(self) -> Path:
        """What the training writes."""
        return self.workspace.fold_folder(self.method, self.fold)

    @property
    def predictions(self) -> Path:
        """Where nnU-Net's validation puts the labels of the test cases."""
        return self.folder / "validation"

    def title(self) -> str:
        """For the reader."""
        return f"{self.method.name}, {self.fold.cases} cases, seed {self.fold.seed} (fold {self.fold.number})"

    def state(self) -> State:
        """How far it has come: `trained` lacks predictions, `begun` has a checkpoint to go on with."""
        if self._is_finished():
            return "finished"
        if (self.folder / "checkpoint_final.pth").is_file():
            return "trained"
        return "begun" if any((self.folder / name).is_file() for name in _CHECKPOINTS) else "missing"

    def command(self) -> list[str]:
        """Program and arguments for what is left to do."""
        which = [dataset_argument(self.workspace.dataset), self.workspace.configuration, str(self.fold.number)]
        goes_on = {"begun": ["--c"], "trained": ["--val"]}.get(self.state(), [])
        return ["nnUNetv2_train", *which, "-tr", self.method.trainer, "-p", self.method.plans, "-device", self.device,
                *goes_on]  # fmt: skip

    def variables(self) -> dict[str, str]:
        """Environment that it needs besides the caller's."""
        return {
            "nnUNet_preprocessed": str(self.workspace.preprocessed),
            "nnUNet_results": str(self.workspace.results(self.method)),
            **self.method.variables,
        }

    def line(self) -> str:
        """To be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables().items()]
        return " ".join([*settings, shlex.join(self.command())])

    def _is_finished(self) -> bool:
        """Whether nnU-Net's summary holds all test cases; it is the last thing that the command writes."""
        try:
            entries = read_json(self.predictions / "summary.json", SummaryFile)["metric_per_case"]
        except UserError:  # not there, or cut short
            return False
        ending = self.workspace.dataset_json["file_ending"]
        scored = {Path(entry["prediction_file"]).name[: -len(ending)] for entry in entries}
        return scored >= set(self.workspace.test.cases)


def all_tasks(
    workspace: Workspace, methods: Sequence[Method], amounts: Sequence[Amount], seeds: int, device: str
) -> list[Task]:
    """Seed by seed, from few labels to many, method by method: what is cut off has compared all methods alike."""
    return [
        Task(workspace, method, workspace.fold(amount.cases, seed), device)
        for seed in range(seeds)
        for amount in amounts
        for method in methods
    ]

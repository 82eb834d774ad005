"""The commands that make a table, and which of them are done."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pays_crops import copy_name
from pays_table import RANDOM, Row, Table
from pays_tables import FLAGS, UNTRAINED

from nnssl.benchmarking.workflow import State, Task
from nnssl.core.lock import Holder
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.report import read_report, report_file
from nnssl.data.storage import done_cases
from nnssl.pretraining.folder import lock_of

CONFIGURATION = "3d_fullres"
log = logging.getLogger("nnssl")


@dataclass(frozen=True, kw_only=True)
class Made(Task):
    """A command that is done once all of these files and folders are there."""

    files: tuple[Path, ...]

    def state(self) -> State:
        """See `Task`."""
        return "finished" if all(file.exists() for file in self.files) else "missing"


@dataclass(frozen=True, kw_only=True)
class Preprocessed(Made):
    """Volumes that are done once every raw case has one, or is left out for a reason."""

    raw: Path
    report: Path

    def state(self) -> State:
        """See `Task`."""
        cases = {file.name.rpartition("_0000.")[0] for file in (self.raw / "imagesTr").glob("*_0000.*")}
        left = cases - read_report(self.report)["left_out"].keys() - done_cases(self.files[-1])
        return "missing" if left else super().state()


@dataclass(frozen=True, kw_only=True)
class Pretraining(Task):
    """One run of nnssl_pretrain in `folder`."""

    folder: Path

    def state(self) -> State:
        """See `Task`."""
        if (self.folder / "checkpoint_final.pth").is_file():
            return "finished"
        return "begun" if (self.folder / "checkpoint_latest.pth").is_file() else "missing"

    def holder(self) -> Holder | None:
        """Who makes this run now; None if nobody does."""
        return lock_of(self.folder).holder()


@dataclass(frozen=True)
class Job:
    """A table, and where and how it is made.

    Args:
        table: with the rows and seeds that are asked for.
        out: folder of all files.
        device: of pretrainings and trainings.
        part_id: number of this job, from 0.
        num_parts: number of jobs that share the work.
    """

    table: Table
    out: Path
    device: str
    part_id: int = 0
    num_parts: int = 1

    @property
    def source(self) -> str:
        """Full name of the pretraining's dataset."""
        return dataset_name(self.table.source)

    @property
    def target(self) -> str:
        """Full name of the labelled dataset."""
        t = self.table
        return dataset_name(t.target) if t.cut_from is None else copy_name(dataset_name(t.cut_from), t.target)

    def crops(self) -> list[Made]:
        """The copy of the labelled dataset, where the table has one."""
        original, script = self.table.cut_from, Path(__file__).with_name("pays_crops.py")
        if original is None:
            return []
        (raw,) = require_folders("nnUNet_raw")
        command = (sys.executable, str(script), str(original), str(self.table.target))
        return [Made(self.out, f"crop_{original}", f"volumes of {self.target}", command,
                     files=(raw / self.target / "dataset.json",))]  # fmt: skip

    def results(self, seed: int | str) -> Path:
        """nnUNet_results of a seed's pretrainings."""
        return self.out / f"pretrained{self.table.longer}" / f"seed_{seed}"

    def run(self, method: str, seed: int | str) -> Path:
        """Folder of a pretraining."""
        name = f"nnssl_{method}__{self.table.plans}__{CONFIGURATION}"
        return self.results(seed) / self.source / name / f"fold_{self.table.fold}"

    def planning(self) -> list[Made]:
        """Plan and preprocess the pretraining's dataset; the patch is set between the two, see `set_patch`."""
        t, source = self.table, self.source
        raw, home = (folder / source for folder in require_folders("nnUNet_raw", "nnUNet_preprocessed"))
        plan = ("nnssl_plan_and_preprocess", "-d", str(t.source), "-p")
        named = ("-overwrite_plans_name", t.plans) if t.plans != t.preset else ()
        file = home / f"{t.plans}.json"
        return [
            Made(self.out, f"plan_{t.plans}", f"plans {t.plans}", (*plan, t.preset, *named, "--no_pp"), files=(file,)),
            Preprocessed(self.out, f"preprocess_{t.plans}", f"volumes of {source}", (*plan, t.plans),
                         files=(file, home / f"{t.plans}_{CONFIGURATION}"), raw=raw,
                         report=report_file(home, t.plans)),
        ]  # fmt: skip

    def pretrainings(self) -> list[Pretraining]:
        """All runs that the rows need: their own of every seed, and of seed 0 those whose plans they take."""
        needed = {(row.start, seed) for row in self.table.rows for seed in range(self.table.seeds)}
        needed |= {(row.planned, 0) for row in self.table.rows}
        runs = [self.pretraining(method, seed) for seed in range(self.table.seeds) for method in self.table.pretrainings
                if (method, seed) in needed]  # fmt: skip
        if self.table.probed and any(row.start == RANDOM for row in self.table.rows):
            runs += [self.untrained(name, seed) for seed in range(self.table.seeds) for name in UNTRAINED]
        return runs

    def untrained(self, name: str, seed: int) -> Pretraining:
        """The run whose network stays random, for the probe."""
        run, home = self.pretraining(UNTRAINED[name], seed), self.out / "untrained" / f"seed_{seed}"
        command = tuple("learning_rate=1e-12" if part.startswith("learning_rate=") else part for part in run.command)
        return replace(run, key=f"probe_{name}_{self.table.plans}_{seed}", title=f"probe of {name}, seed {seed}",
                       command=command, variables={"nnUNet_results": str(home)},
                       folder=home / run.folder.relative_to(self.results(seed)))  # fmt: skip

    def pretraining(self, method: str, seed: int) -> Pretraining:
        """The run of a method and a seed."""
        t = self.table
        fold = () if t.fold == "all" else ("-f", t.fold)
        options = dict(option.split("=", 1) for option in t.pretrainings[method].split())
        options["num_epochs"] = str(int(options["num_epochs"]) * t.times_epochs)
        probe = ("-probe", str(t.target), "-probe_every", "1") if t.probed else ()
        command = ("nnssl_pretrain", "-d", str(t.source), "-m", method, "-p", t.plans, *fold, "-device", self.device,
                   *probe, *FLAGS.get(method, ()),
                   "-o", *(f"{key}={value}" for key, value in options.items()), f"seed={seed}")  # fmt: skip
        key, title = f"pretrain_{method}_{t.plans}{t.longer}_{seed}", f"pretraining with {method}, seed {seed}"
        return Pretraining(self.out, key, title, command, {"nnUNet_results": str(self.results(seed))},
                           folder=self.run(method, seed))  # fmt: skip

    def transfers(self) -> list[Made]:
        """Plans and volumes of the labelled dataset for all rows."""
        t, home = self.table, Path(require_folders("nnUNet_preprocessed")[0]) / self.target
        made = {}
        for row in t.rows:
            name = t.transferred(row.planned, row.copy)
            own = ("-overwrite_plans_name", name) if row.copy else ()
            command = ("nnssl_transfer", "-s", str(t.source), "-t", str(t.target), "-m", row.planned, "-p", t.plans,
                       "-f", t.fold, *own)  # fmt: skip
            files = (home / f"{name}.json", report_file(home, name))
            made[name] = Made(self.out, f"transfer_{name}", f"plans {name}", command,
                              {"nnUNet_results": str(self.results(0))}, files=files)  # fmt: skip
        return list(made.values())

    def item(self, row: Row) -> str:
        """The row as nnssl_benchmark takes it."""
        start = RANDOM if row.start == RANDOM else str(self.run(row.start, "{seed}")) if row.start else ""
        known = {"out": self.out, "dataset": self.target, "plans": self.table.plans, "source": self.table.source}
        settings = [f"{name}={value.format(**known)}" for name, value in row.settings.items()]
        return ",".join([f"{row.name}={row.trainer}", self.table.transferred(row.planned, row.copy), start, *settings])

    def ready(self) -> list[Row]:
        """Rows whose pretrainings are finished; the others are named."""
        unfinished = {task.folder for task in self.pretrainings() if task.state() != "finished"}
        ready = []
        for row in self.table.rows:
            own = [self.run(str(row.start), seed) for seed in range(self.table.seeds)] if row.start else []
            if missing := [f for f in (*own, self.run(row.planned, 0)) if f in unfinished]:
                log.warning(f"{row.name} is left out: {missing[0]} is not finished")
            else:
                ready.append(row)
        return ready

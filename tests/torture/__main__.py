"""`make torture`: commands are killed at random moments and typed again; nothing may be lost, changed or left behind.

    python -m tests.torture -kills 50 -seed 0

A job (`tests.torture.jobs`) is run once without a kill. Then its line is run in a copy of the folder that it starts
from; the whole process group is killed (SIGKILL) at a random moment of that run, the line is typed again, killed again
or not, and at last run to its end; the folder has to hold what the uninterrupted one holds. Exit code 1 where it does
not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.shell import Walk
from tests.torture.jobs import JOBS, Job, copy, differences, names, write_raw

_CHAIN = 3  # kills of one job before it may end, at most
_PATIENCE_S = 600.0


@dataclass
class Figures:
    """Of one job: where its kills hit, and what came of them."""

    seconds: float
    hits: Counter[str] = field(default_factory=Counter)
    chains: int = 0
    faults: list[str] = field(default_factory=list)


class Torture:
    """All jobs in a folder.

    Args:
        folder: empty; holds the states that the uninterrupted jobs start from and end with.
        seed: of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.figures: dict[str, Figures] = {}
        write_raw(folder / "raw")
        for job in JOBS:
            copy(self._start_of(job), self._end_of(job))
            started = time.monotonic()
            code, said = self._run(job, self._end_of(job), None)
            if code:
                raise SystemExit(f"{job.line} fails without a kill: {said}")
            self.figures[job.name] = Figures(time.monotonic() - started)
            print(f"{job.name}: {self.figures[job.name].seconds:.1f} s without a kill", flush=True)

    def chain(self, job: Job, most: int) -> int:
        """Start, kill, start again, ..., run to the end and compare; how many kills there were."""
        figures, place = self.figures[job.name], self.folder / "work"
        copy(self._start_of(job), place)
        start = names(place)
        kills, wanted = 0, self.random.randint(1, min(_CHAIN, most))
        while kills < wanted:
            after, started = self.random.uniform(0, figures.seconds), time.monotonic()
            code, said = self._run(job, place, after)
            if code is not None:  # faster than before: the machine has less to do, or little was left
                figures.seconds = min(figures.seconds, time.monotonic() - started) if kills == 0 else figures.seconds
                break
            kills += 1
            hit = self._where(place, start, said)
            figures.hits[hit] += 1
            print(f"  {job.name}: killed after {after:5.2f} s, {hit} ({' '.join(said.split())[-60:]})", flush=True)
        if kills == 0:
            return 0
        figures.chains += 1
        code, said = self._run(job, place, None)
        faults = [f"exit code {code}: {said[-300:]}"] if code else []
        faults += differences(self._end_of(job), place)
        for fault in faults:
            print(f"  {job.name}: {fault}", flush=True)
        figures.faults += faults
        return kills

    def table(self) -> str:
        """The figures in Markdown."""
        kinds = ("starting", "working", "writing")
        lines = ["| job | s | kills | " + " | ".join(kinds) + " | continued to the end | lost, changed or left |",
                 "|---" * (len(kinds) + 5) + "|"]  # fmt: skip
        for name, found in self.figures.items():
            hits = " | ".join(str(found.hits[kind]) for kind in kinds)
            lines.append(f"| {name} | {found.seconds:.0f} | {found.hits.total()} | {hits} | {found.chains} | "
                         f"{len(found.faults)} |")  # fmt: skip
        total = sum((found.hits for found in self.figures.values()), Counter[str]())
        hits = " | ".join(str(total[kind]) for kind in kinds)
        chains, faults = (sum(each) for each in zip(*((f.chains, len(f.faults)) for f in self.figures.values()),
                                                    strict=True))  # fmt: skip
        lines.append(f"| all | | {total.total()} | {hits} | {chains} | {faults} |")
        return "\n".join(lines)

    def _run(self, job: Job, place: Path, kill_after: float | None) -> tuple[int | None, str]:
        """Exit code and output; None where it was killed."""
        environment = Walk(place).environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        output = self.folder / "output.txt"
        with open(output, "w") as file:
            process = subprocess.Popen(shlex.split(job.line), cwd=place, env=environment, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            try:
                code: int | None = process.wait(_PATIENCE_S if kill_after is None else kill_after)
            except subprocess.TimeoutExpired:
                code = None if kill_after is not None else -1
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return code, output.read_text(errors="replace")

    def _where(self, place: Path, start: set[str], said: str) -> str:
        """What the process was doing when it was killed."""
        new = names(place) - start
        if any(part.endswith(".writing") or (part.startswith(".") and not part.endswith(".lock"))
               for name in new for part in Path(name).parts):  # fmt: skip
            return "writing"
        return "working" if new or said.strip() else "starting"

    def _start_of(self, job: Job) -> Path:
        return self.folder / (job.after or "raw")

    def _end_of(self, job: Job) -> Path:
        return self.folder / job.name


def main() -> None:
    """Entry point."""
    p = argparse.ArgumentParser("python -m tests.torture", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("-kills", type=int, default=50, metavar="N", help="in all (default: 50)")
    p.add_argument("-seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    arguments = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture_") as folder:
        torture = Torture(Path(folder), arguments.seed)
        left = arguments.kills
        while left > 0:
            for job in JOBS:
                left -= torture.chain(job, left) if left > 0 else 0
        print(torture.table())
        sys.exit(1 if any(figures.faults for figures in torture.figures.values()) else 0)


if __name__ == "__main__":
    main()

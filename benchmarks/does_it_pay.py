"""Make a table of docs/results.md from the raw volumes: plans, pretrainings, their transfer, trainings, scores.

    python benchmarks/does_it_pay.py 017 -o OUT                      everything that is left of table 017
    python benchmarks/does_it_pay.py 017 -o OUT -rows random vox2vec -seeds 1
    python benchmarks/does_it_pay.py 017 -o OUT -num_parts 2 -part_id 0     a half, for one of two jobs
    python benchmarks/does_it_pay.py 017 -o OUT --dry_run            the commands that are left
    python benchmarks/does_it_pay.py 017 -o OUT --trial              the whole chain in the shortest form
    python benchmarks/does_it_pay.py --write_docs [-o OUT]           docs/results.md from benchmarks/results

The tables are in `pays_tables.py`. nnUNet_raw and nnUNet_preprocessed are the user's. OUT gets pretrained/seed_S (the
nnUNet_results of the pretrainings), TABLE/ (a folder of nnssl_benchmark) and logs/. The same command goes on where it
was interrupted; finished pretrainings and trainings are kept, also those that were started by hand with the commands
that --dry_run prints, and a pretraining that is running is left alone. Rows whose pretrainings are not finished are
left out, with a line that names them; several parts train once there are no such rows. On two cores:

    export nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 nnUNet_compile=f OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pays_job import CONFIGURATION, Job, Pretraining
from pays_page import write_docs
from pays_table import Table
from pays_tables import TABLES

from nnssl import benchmark
from nnssl.benchmarking.workflow import Task, TaskFailed, run_task
from nnssl.cli.run import entry
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.data.folders import require_folders

log = logging.getLogger("nnssl")


def set_patch(plans: Path, patch: Sequence[int]) -> None:
    """Change the patch in a file of plans, unless it is that one."""
    content = json.loads(plans.read_text())
    if content["configurations"][CONFIGURATION]["patch_size"] != list(patch):
        content["configurations"][CONFIGURATION]["patch_size"] = list(patch)
        write_json(plans, content)


def hold_out(job: Job) -> None:
    """Split the dataset that is both pretrained on and segmented: its last quarter is for the test.

    Raises:
        UserError: it is split otherwise.
    """
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    names = sorted(f.name.split(".")[0] for f in (raw / job.target / "labelsTr").iterdir())
    kept = len(names) - len(names) // 4
    split = {"train": names[:kept], "val": names[kept:]}
    file = preprocessed / job.target / "splits_final.json"
    if not file.is_file():
        write_json(file, [split])
    elif json.loads(file.read_text())[0] != split:
        raise UserError(f"fold 0 of {file} holds out other cases than {', '.join(split['val'])}, which the table is "
                        f"tested on; move that file away")  # fmt: skip


def link_unlabelled(job: Job) -> None:
    """OUT/raw: the labelled dataset with the volumes of the pretraining as its `imagesUn`."""
    (raw,) = require_folders("nnUNet_raw")
    folder = job.out / "raw" / job.target
    folder.mkdir(parents=True, exist_ok=True)
    linked = {"imagesUn": raw / job.source / "imagesTr"} | {f.name: f for f in (raw / job.target).iterdir()}
    for name, original in linked.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(original.resolve())


def run_all(tasks: Sequence[Task]) -> list[str]:
    """Run what is not finished; returns what failed, after all others."""
    failed = []
    for number, task in enumerate(tasks, start=1):
        log.info(f"[{number} of {len(tasks)}] {task.title}{': finished' if task.state() == 'finished' else ''}")
        if isinstance(task, Pretraining) and (holder := task.holder()):
            log.info(f"  is being made by {holder}: left to it")
        elif task.state() != "finished":
            try:
                run_task(task)
            except TaskFailed as error:
                log.warning(str(error))
                failed.append(task.title)
    return failed


def make(job: Job) -> None:
    """All steps of a table.

    Raises:
        UserError: a command failed, or what the parts share is not ready.
    """
    t = job.table
    plan, preprocess = job.planning()
    if job.part_id and "missing" in (plan.state(), preprocess.state()):
        raise UserError(f"plans and volumes of {job.source} are made by part 0; start part {job.part_id} when that one "
                        f"pretrains")  # fmt: skip
    failed = run_all([*job.crops(), plan])
    if t.patch is not None and not failed:
        set_patch(plan.files[0], t.patch)
    failed += run_all([preprocess])
    if t.source == t.target and not failed:
        hold_out(job)
    if not failed:
        failed = run_all(job.pretrainings()[job.part_id :: job.num_parts])
        job = replace(job, table=replace(t, rows=tuple(job.ready())))
        if not_transferred := run_all(job.transfers()):
            failed += not_transferred
        elif job.num_parts == 1 or len(job.table.rows) == len(t.rows):
            train(job)
        elif not failed:
            raise UserError("the parts share the trainings of all rows, and some are left out; type the same again "
                            "when their pretrainings are finished, or name the others with -rows")  # fmt: skip
    if failed:
        raise UserError(f"these steps failed, see {job.out / 'logs'}: {', '.join(failed)}; type the same to go on")


def train(job: Job, collect_only: bool = False) -> None:
    """The trainings of the rows, and the tables of those that are finished."""
    t = job.table
    if not t.rows:
        return
    if not collect_only and any(row.copy for row in t.rows):
        link_unlabelled(job)
    rows = [job.item(row) for row in t.rows]
    benchmark(t.target, rows, job.out / t.name, CONFIGURATION, cases=t.cases, seeds=t.seeds, test=t.test,
              baseline=t.baseline, device=job.device, num_parts=job.num_parts, part_id=job.part_id,
              collect_only=collect_only)  # fmt: skip


def commands(job: Job) -> Iterator[str]:
    """The commands that are left, to paste into a shell."""
    for task in (*job.crops(), *job.planning(), *job.pretrainings()[job.part_id :: job.num_parts], *job.transfers()):
        if task.state() != "finished":
            yield task.line()
    t = job.table
    parts = ["-num_parts", str(job.num_parts), "-part_id", str(job.part_id)] if job.num_parts > 1 else []
    yield shlex.join(["nnssl_benchmark", "-d", str(t.target), "-c", CONFIGURATION, "-o", str(job.out / t.name),
                      "-cases", *map(str, t.cases), "-seeds", str(t.seeds), "-test", t.test, "-baseline", t.baseline,
                      "-device", job.device, *parts, "-tr", *map(job.item, t.rows)])  # fmt: skip


def shortest(table: Table) -> Table:
    """One step of everything, for a look at the whole chain; four test cases, where the table takes a share."""
    one = {"num_epochs": "1", "steps_per_epoch": "1", "val_steps_per_epoch": "1", "warmup_steps": "0"}
    pretrainings = {}
    for method, text in table.pretrainings.items():
        options = dict(option.split("=", 1) for option in text.split())
        pretrainings[method] = " ".join(f"{key}={one.get(key, value)}" for key, value in options.items())
    lengths = ("nnssl_num_epochs", "nnssl_num_iterations_per_epoch", "nnssl_num_val_iterations_per_epoch")
    rows = tuple(replace(row, settings={**row.settings, **dict.fromkeys(lengths, "1")}) for row in table.rows)
    test = table.test if table.test.startswith("fold") else "4" if table.target == 17 else table.test
    return replace(table, pretrainings=pretrainings, rows=rows, test=test, cases=table.cases[:1])


def chosen(table: Table, rows: Sequence[str] | None, seeds: int | None, trial: bool) -> Table:
    """The table with the rows and seeds that are asked for.

    Raises:
        UserError: it has no such row.
    """
    names = [row.name for row in table.rows]
    if unknown := sorted(set(rows or ()) - set(names)):
        raise UserError(f"table {table.name} has no row {unknown[0]}; its rows are {', '.join(names)}")
    kept = tuple(row for row in table.rows if rows is None or row.name in rows)
    table = replace(table, rows=kept, seeds=seeds or table.seeds)
    return shortest(table) if trial else table


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tables", nargs="*", choices=[[], *TABLES], metavar="TABLE", help=", ".join(TABLES))
    p.add_argument("-o", metavar="OUT", help="folder of all files")
    p.add_argument("-rows", nargs="+", metavar="ROW", help="only these; the first row is the baseline")
    p.add_argument("-seeds", type=int, metavar="N", help="only the first N seeds")
    p.add_argument("-device", default="cpu", choices=("cpu", "cuda", "mps"))
    p.add_argument("-num_parts", type=int, default=1)
    p.add_argument("-part_id", type=int, default=0)
    p.add_argument("--dry_run", action="store_true", help="print the commands that are left, run nothing")
    p.add_argument("--collect", action="store_true", help="only make the tables of finished trainings")
    p.add_argument("--trial", action="store_true", help="one step of everything with one number of cases, in OUT/trial")
    p.add_argument("--write_docs", action="store_true", help="write docs/results.md, with what is new in OUT")
    return p


def _command(arguments: argparse.Namespace) -> None:
    out = None if arguments.o is None else Path(arguments.o).resolve()
    if out is None and arguments.tables:
        raise UserError("no folder is given; type for example -o OUT")
    for name in arguments.tables:
        table = chosen(TABLES[name], arguments.rows, arguments.seeds, arguments.trial)
        home = (out or Path(os.curdir)) / ("trial" if arguments.trial else "")
        job = Job(table, home, arguments.device, arguments.part_id, arguments.num_parts)
        if arguments.dry_run:
            print("\n".join(commands(job)))
        elif arguments.collect:
            train(job, collect_only=True)
        else:
            make(job)
    if arguments.write_docs:
        write_docs(out)


main = entry(parser, _command)

if __name__ == "__main__":
    main()

"""`nnssl_benchmark`: the same test set after trainings with few and with many labels."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nnssl.benchmarking.case_scores import Absent, load_monai, read_structures
from nnssl.benchmarking.methods import Method, read_methods, resolve, stops_early
from nnssl.benchmarking.plots import draw_labels, draw_parameters
from nnssl.benchmarking.results import FEWEST_CASES, FEWEST_SEEDS, Results, differences, too_few
from nnssl.benchmarking.subsets import PAPER, amounts_of, extend_folds
from nnssl.benchmarking.tables import write_tables
from nnssl.benchmarking.trainings import Training, all_trainings, collect, missing_lines, score_training
from nnssl.benchmarking.workflow import SOME_FAILED, run_tasks, say_commands
from nnssl.benchmarking.workspace import Workspace, open_workspace, read_plans, write_workspace
from nnssl.core.distributed import check_device, resolve_device, usual_device
from nnssl.core.errors import UserError
from nnssl.core.names import check_name
from nnssl.data.folders import check_output_folder, dataset_name, require_folders
from nnssl.data.pool import default_processes
from nnssl.data.raw import read_dataset_json

_MOST = 1000  # seeds, processes
FRACTIONS = (5.0, 10.0, 20.0, 50.0, 100.0)
log = logging.getLogger("nnssl")


def benchmark(
    dataset: int | str,
    trainers: Sequence[str],
    output: str | Path,
    configuration: str = "3d_fullres",
    plans: str = "nnUNetPlans",
    fractions: Sequence[float] | None = None,
    cases: Sequence[int] | None = None,
    seeds: int = 3,
    test: str | None = None,
    baseline: str | None = None,
    device: str | None = None,
    tolerance: Sequence[str | float] = (),
    absent: Absent = "flare",
    num_parts: int = 1,
    part_id: int = 0,
    num_processes: int | None = None,
    dry_run: bool = False,
    collect_only: bool = False,
) -> Results | None:
    """Train every method on nested subsets of the training cases, and compare them on one fixed test set.

    Args:
        dataset: number or name of a preprocessed dataset.
        trainers: `TRAINER`, or `NAME=TRAINER,PLANS,CHECKPOINT`, followed by any `nnssl_VARIABLE=VALUE`; `{seed}` in
            CHECKPOINT is the number of the seed, from 0.
        output: folder for everything; the user's own folders are only read.
        configuration: of the plans.
        plans: for trainers without plans of their own.
        fractions: percentages of the training cases; None for 5, 10, 20, 50 and 100 if `cases` is None too.
        cases: numbers of training cases, instead of fractions.
        seeds: number of random orders of the training cases; each amount is trained once per order.
        test: `labelsTs`, `fold_0` (or another number), a percentage of the labelled cases, or `70/10/20` for PiMPiC's
            split; None for labelsTs if nnUNet_raw has it, else 20.
        baseline: name of the method that the others are compared with; None for the first.
        device: cuda, cpu or mps; None: cuda where PyTorch sees a card.
        tolerance: see `nnssl.evaluate`.
        absent: see `nnssl.evaluate`.
        num_parts: number of jobs that share the trainings.
        part_id: number of this job, from 0.
        num_processes: number of cases to score at once; None for nnU-Net's number, at most one a core.
        dry_run: log the commands that are left, with their environment, train nothing, and return None.
        collect_only: train nothing, make tables of the finished trainings.

    Returns:
        Results of the finished trainings of all parts; None for a dry run.

    Raises:
        UserError: arguments or folders are wrong; or trainings failed, after all others are done.
    """
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id counts from 0 to {num_parts - 1} (-num_parts - 1), not {part_id}")
    if not 1 <= seeds <= _MOST:
        raise UserError(f"-seeds takes a number from 1 to {_MOST}, not {seeds}")
    num_processes = default_processes(num_processes)
    check_name(configuration, "configuration", "-c")
    methods = read_methods(trainers, plans)
    if baseline is not None and baseline not in [m.name for m in methods]:
        raise UserError(f"-baseline {baseline} is none of the methods; take one of "
                        f"{', '.join(m.name for m in methods)}")  # fmt: skip
    home = Path(output).resolve()
    score = partial(score_training, tolerance=tolerance, absent=absent, num_processes=num_processes)
    if not dry_run:
        check_output_folder(home)
    device = device or (usual_device() if collect_only else resolve_device(None))
    if not (dry_run or collect_only):
        if device != "mps":  # which nnU-Net's command knows
            check_device(device)
        load_monai()  # says so where it is missing: not only after the first training
    workspace = _open(home, dataset, configuration, methods, test, tolerance)
    training = workspace.test.training
    amounts = amounts_of(len(training), FRACTIONS if not fractions and not cases else fractions, cases)
    workspace = replace(workspace, folds=extend_folds(workspace.folds, training, amounts, seeds, workspace.test.order))
    if not collect_only:  # finished trainings no longer need their pretraining or variables
        methods = [resolve(m, workspace.plans[m.plans], configuration, os.environ, seeds) for m in methods]
        _warn_of_early_stopping(methods, workspace)
        _warn_of_few(workspace, seeds)
    tasks = all_trainings(workspace, methods, amounts, seeds, device)
    mine, failed = tasks[part_id::num_parts], []
    if dry_run:
        say_commands(mine)
        return None
    if not collect_only:
        write_workspace(workspace, methods)
        failed = run_tasks(mine, lambda task: task.method.name, score)
    results, missing = collect(tasks, amounts, seeds, score)
    _report(results, missing, baseline or methods[0].name, home / "results", workspace.source.name)
    if failed:
        raise UserError(SOME_FAILED + "\n".join(failed))
    return results


def _open(
    home: Path, dataset: int | str, configuration: str, methods: Sequence[Method], test: str | None,
    tolerance: Sequence[str | float],
) -> Workspace:  # fmt: skip
    """Check dataset, plans, tolerance and folder, and open the workspace; write nothing."""
    (preprocessed,) = require_folders("nnUNet_preprocessed")
    source = preprocessed / dataset_name(dataset)
    plans = read_plans(source, dict.fromkeys(m.plans for m in methods), configuration)
    read_structures(read_dataset_json(source), next(iter(plans.values())), tolerance)  # checks the tolerance
    raw = Path(os.environ["nnUNet_raw"]) / source.name if os.environ.get("nnUNet_raw") else None
    workspace = open_workspace(home, source, configuration, plans, raw, test)
    log.info(f"test set: {len(workspace.test.cases)} cases ({workspace.test.source}); "
             f"{len(workspace.test.training)} cases for training")  # fmt: skip
    return workspace


def _warn_of_early_stopping(methods: Sequence[Method], workspace: Workspace) -> None:
    for method in methods:
        if not workspace.test.validation and stops_early(method, workspace.plans[method.plans]):
            log.warning(f"{method.name} stops early and takes its best weights by the loss on the test cases, so that "
                        f"its scores will be too good; -test {PAPER} has cases of its own for that")  # fmt: skip


def _warn_of_few(workspace: Workspace, seeds: int) -> None:
    """Say before the trainings that the tables will have no interval, and what gives them one."""
    count, total = len(workspace.test.cases), len(workspace.test.cases) + len(workspace.test.training)
    if not (reason := too_few(count, seeds)):
        return
    fixes = [f"-seeds {FEWEST_SEEDS}"] if seeds < FEWEST_SEEDS else []
    if count < FEWEST_CASES:
        percent = math.ceil(100 * FEWEST_CASES / total)
        fixes += [f"-test {percent} in another folder (-o)" if percent <= 50 else "more labelled cases"]
    log.warning(f"{reason.rstrip('.')}, so that a lead may be chance; with {' and '.join(fixes)} there is one")


def _report(results: Results, missing: Sequence[Training], baseline: str, folder: Path, title: str) -> None:
    if lines := missing_lines(missing):
        log.warning(f"{len(missing)} trainings are not finished:\n  " + "\n  ".join(lines))
    if not results.scores:
        log.warning("nothing is finished yet: no tables")
        return
    folder.mkdir(parents=True, exist_ok=True)
    shown = replace(results, methods=[m for m in results.methods if any(m == key[0] for key in results.scores)])
    write_tables(shown, differences(shown, baseline), baseline, folder)
    draw_labels(shown, baseline, folder / "labels.png", f"{title}: Dice and labels (bars: SD over seeds)")
    most = f"filled: {results.amounts[-1].cases} labelled cases; bars: SD over seeds"
    draw_parameters(shown, baseline, folder / "parameters.png", f"{title}: Dice and trainable parameters\n({most})")
    log.info(f"tables and plots of {len(results.scores)} trainings: {folder}")

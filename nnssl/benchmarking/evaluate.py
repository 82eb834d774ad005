"""`nnssl_evaluate`: Dice and normalised surface Dice of a folder of predictions."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nnssl.benchmarking.case_scores import Absent, Structure, read_structures, score_case
from nnssl.benchmarking.evaluation_report import Evaluation, write_evaluation
from nnssl.benchmarking.results import FEWEST_CASES
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.plans_schema import ReaderPlans
from nnssl.core.schemas import DatasetFile
from nnssl.core.system import printable, why_no_file, why_not_utf8
from nnssl.data.folders import check_output_folder
from nnssl.data.pool import default_processes
from nnssl.data.raw import label_values
from nnssl.data.trusted import refuse_untrusted_names

SUMMARY = "summary.json"  # nnU-Net's
_LISTED = 5  # names that an error lists
_DESCRIPTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "dataset.json": ("-djfile", DatasetFile),
    "plans.json": ("-pfile", ReaderPlans),
}

log = logging.getLogger("nnssl")


def evaluate(
    references: str | Path,
    predictions: str | Path,
    dataset_json: str | Path | None = None,
    plans: str | Path | None = None,
    tolerance: Sequence[str | float] = (),
    absent: Absent = "flare",
    chill: bool = False,
    num_processes: int | None = None,
    output: str | Path | None = None,
) -> Evaluation:
    """Score predicted labels, and write `nnssl_evaluation.json`, `nnssl_evaluation.csv` and nnU-Net's `summary.json`.

    Args:
        references: folder of the true labels.
        predictions: folder of the predicted labels, with the same names.
        dataset_json: nnU-Net's file; None for the one in the predictions' folder or in the model folder around it.
        plans: the same for `plans.json`.
        tolerance: of the surface Dice in mm: a number for all structures (default 2), `NAME=NUMBER` for single ones.
        absent: score of a structure that is in neither label file: `flare` 1, `exclude` none, as in nnU-Net's summary.
            If it is in only one of them, Dice and surface Dice are 0.
        chill: skip references without a prediction, as nnU-Net's flag of that name.
        num_processes: number of cases to score at once; None for nnU-Net's number, at most one a core.
        output: folder for the files; None for the predictions' folder.

    Raises:
        UserError: a folder, file, prediction or reference is missing; the grids or the labels do not fit; the output
            cannot be written to.
    """
    where = Path(predictions)
    target = where if output is None else Path(output)
    num_processes = default_processes(num_processes)
    for folder in (Path(references), where):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; name the folder of the true labels, then the folder of the "
                            f"predicted ones")  # fmt: skip
    content, planned = _described(dataset_json, where, "dataset.json"), _described(plans, where, "plans.json")
    pairs = _pairs(Path(references), where, content["file_ending"], chill)
    check_output_folder(target)
    if len(pairs) < FEWEST_CASES:
        log.warning(f"only {len(pairs)} cases: with fewer than {FEWEST_CASES} a difference between models may be "
                    f"chance; predict more cases")  # fmt: skip
    evaluation = evaluate_cases(pairs, content, planned, tolerance, absent, num_processes)
    target.mkdir(parents=True, exist_ok=True)
    _write_summary(Path(references), where, target / SUMMARY, content, planned, evaluation.structures, num_processes)
    write_evaluation(evaluation, target)
    return evaluation


def evaluate_cases(
    pairs: dict[str, tuple[Path, Path]],
    dataset_json: dict[str, Any],
    plans: dict[str, Any],
    tolerance: Sequence[str | float] = (),
    absent: Absent = "flare",
    num_processes: int = 1,
) -> Evaluation:
    """Score pairs of files without writing anything.

    Args:
        pairs: reference and prediction by the case's name.
        dataset_json: content of nnU-Net's file.
        plans: content of nnU-Net's file.
        tolerance: see `evaluate`.
        absent: see `evaluate`.
        num_processes: number of cases to score at once.

    Raises:
        UserError: see `evaluate`.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    structures = read_structures(dataset_json, plans, tolerance)
    manager = PlansManager(plans)
    score = partial(
        score_case,
        reader=manager.image_reader_writer_class,
        structures=structures,
        allowed=label_values(dataset_json),
        ignored=manager.get_label_manager(dataset_json).ignore_label,
        absent=absent,
    )
    jobs = [(case, *files) for case, files in sorted(pairs.items())]
    workers = min(num_processes, len(jobs))
    if workers <= 1:
        found = [score(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                found = list(pool.map(score, *zip(*jobs, strict=True)))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return Evaluation(structures, absent, [row for rows in found for row in rows])


def _described(given: str | Path | None, predictions: Path, name: str) -> dict[str, Any]:
    """Content of dataset.json or plans.json: the given file, or the one beside the predictions or in their model."""
    flag, schema = _DESCRIPTIONS[name]
    # training writes predictions into MODEL/fold_0/validation, and these files into MODEL
    beside = [folder / name for folder in (predictions, *predictions.resolve().parents[:2])]
    file = next((f for f in ([Path(given)] if given is not None else beside) if f.is_file()), None)
    if file is None:
        missing = f"there is no {name} beside the predictions in {predictions}" if given is None \
            else f"{given} does not exist"  # fmt: skip
        raise UserError(f"{missing}; name nnU-Net's {name} with {flag}")
    content: dict[str, Any] = read_json(file, schema, f"name nnU-Net's {name} with {flag}")
    if name == "plans.json":
        refuse_untrusted_names(content, source=file)
    return content


def _pairs(references: Path, predictions: Path, ending: str, chill: bool) -> dict[str, tuple[Path, Path]]:
    true, predicted = ({f.name[: -len(ending)]: f for f in d.iterdir() if f.name.endswith(ending)}
                       for d in (references, predictions))  # fmt: skip
    for file in (*true.values(), *predicted.values()):  # nnU-Net's summary skips them silently
        if (reason := why_not_utf8(file.name) or why_no_file(file)) is not None:
            raise UserError(f"{printable(str(file))} {reason}; remove it, or put a label file there")
    if unknown := sorted(predicted.keys() - true.keys()):
        raise UserError(f"{len(unknown)} predictions have no reference in {references}: {_listed(unknown)}; remove "
                        f"them, or name the right folder (the references come first)")  # fmt: skip
    if missing := sorted(true.keys() - predicted.keys()):
        text = f"{len(missing)} references have no prediction in {predictions}: {_listed(missing)}"
        if not chill or not predicted:
            raise UserError(f"{text}; predict them too, or skip them with --chill")
        log.warning(f"{text}; skipped")
    if not predicted:
        raise UserError(f"there are no {ending} files in {references}; name the folder of the true labels")
    return {case: (true[case], predicted[case]) for case in predicted}


def _write_summary(
    references: Path, predictions: Path, file: Path, dataset_json: dict[str, Any], plans: dict[str, Any],
    structures: list[Structure], num_processes: int,
) -> None:  # fmt: skip
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    temporary = file.with_name(f".writing.{file.name}")
    compute_metrics_on_folder(
        str(references), str(predictions), str(temporary), manager.image_reader_writer_class(),
        dataset_json["file_ending"], [s.key for s in structures],
        manager.get_label_manager(dataset_json).ignore_label, num_processes, chill=True,
    )  # fmt: skip
    temporary.replace(file)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")

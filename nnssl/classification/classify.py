"""`nnssl.classify`: from a column of `labels.csv` to cross-validated scores and a model that predicts new images."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.files import package_versions
from nnssl.checkpoints.pretrained import RANDOM, pretrained_of
from nnssl.checkpoints.runs import Run, open_run
from nnssl.classification.finetune import Job
from nnssl.classification.frozen import WITH_RANDOM, constant, cross_validate, save_frozen, start_of, vectors_of
from nnssl.classification.labels import Task
from nnssl.classification.model import MODEL, Way
from nnssl.classification.plots import draw_results
from nnssl.classification.question import Question, ask
from nnssl.classification.results import (
    CONSTANT,
    Predictions,
    Rated,
    few_warning,
    rate,
    table_lines,
    write_results,
)
from nnssl.classification.splits import Fold
from nnssl.classification.volumes import Prepared, prepare_as, prepare_own
from nnssl.core.distributed import resolve_device, started_by_torchrun
from nnssl.core.errors import UserError
from nnssl.core.files import WRITING, read_json, write_json
from nnssl.core.own_files import ClassificationFile
from nnssl.core.system import dispensable
from nnssl.data.folders import check_output_folder
from nnssl.data.next_lines import INPUT, command, device_flag
from nnssl.features.model import model_of
from nnssl.pretraining.metrics import memory_gib

ABOUT = "classification.json"  # in the output folder, written before anything else
CONFIGURATION = "3d_fullres"
_SEVERAL = {"classes": "other classes", "weights": "the weights of another pretraining"}
FINETUNED = "fine-tuned"

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Classified:
    """What `classify` leaves.

    Args:
        folder: with the results, and the model that `nnssl_classify_predict` takes.
        rated: scores of each kind of prediction, the most important first.
        table: the lines of `results.md`.
        next: lines to type next.
    """

    folder: Path
    rated: tuple[Rated, ...]
    table: tuple[str, ...]
    next: tuple[str, ...]


def classify(
    dataset: int | str,
    model: str | Path,
    target: str | None = None,
    task: Task | None = None,
    finetune: bool = False,
    folds: int = 5,
    fold: Sequence[int] | None = None,
    output: str | Path | None = None,
    plans: str | None = None,
    configuration: str = CONFIGURATION,
    options: Sequence[str] = (),
    memory: float | None = None,
    continue_run: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str | None = None,
    num_processes: int | None = None,
    allow_other_intensities: bool = False,
    splits: str | Path | None = None,
) -> Classified:
    """Predict a label of each scan from the weights of a pretraining, and say how well that works.

    Frozen: the mean of each case's features over its body (`nnssl.embed`) is computed once, and heads are fitted to
    these vectors in every fold. Fine-tuned: the whole encoder learns in every fold, from the pretraining's weights.

    Args:
        dataset: raw dataset with `imagesTr` and `labels.csv`, number or name.
        model: RUN; `random:RUN` for the same network with random weights; or, to fine-tune, `random` with `plans`.
        target: column of `labels.csv`; None where there is only one.
        task: `classification` or `regression`, in place of what the values say.
        finetune: train the encoder too.
        folds: to make, where the dataset has no `splits_final.json`.
        fold: numbers of those to fine-tune; None for all.
        output: folder; None: one in nnUNet_results, beside nnU-Net's models of the dataset.
        plans: of the dataset, or a preset, for `random`.
        configuration: of these plans.
        options: `key=value` of the fine-tuning (`nnssl.classification.method.ClassificationConfig`).
        memory: GiB that a step of whole volumes may take, else it takes crops; None: nine tenths of a card, or half of
            the machine's memory.
        continue_run: go on with an interrupted fine-tuning; finished folds stay.
        overwrite: replace an earlier fine-tuning; for frozen features, make the vectors again.
        seed: of folds that are made, of inner folds, and of the fine-tuning.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        num_processes: for preprocessing; None: nnU-Net's default.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).
        splits: file with folds, like `splits_final.json`, in place of the dataset's.

    Raises:
        UserError: any mistake in the request, the labels or the images, in a sentence that says how to mend it.
        Interrupted: SIGTERM or SIGUSR1 during the fine-tuning, which is saved.
    """
    started = time.perf_counter()
    device = resolve_device(device)
    _check_request(str(model), finetune, plans, configuration, fold, options, memory, continue_run, num_processes)
    question = ask(dataset, target, task, folds, seed, splits)
    if few := few_warning(question.target, question.folds):
        log.warning(few)
    if finetune:
        job, about, chosen = _finetuning(question, str(model), fold, output, plans, configuration, options, memory,
                                         continue_run, overwrite, seed, device, num_processes,
                                         allow_other_intensities)  # fmt: skip
        for one in chosen:
            job.train(one)
        done = job.finished(question.folds)
        found = {FINETUNED: {case: row for one in done for case, row in job.predict(one).items()}}
        random = job.with_random_weights()
        if random is not None and len(random.finished(done)) == len(done):
            rows = {case: row for one in done for case, row in random.predict(one).items()}
            found[f"{FINETUNED}{WITH_RANDOM}"] = rows
        found[CONSTANT[question.target.task]] = constant(question.target, done)
        return finish(job.folder, question, done, found, about, device, time.perf_counter() - started)
    run = open_run(model)
    start, plans_name = start_of(run), run.content["plans"]["plans_name"]
    folder = output_folder(question, start, "frozen", plans_name, run.content["configuration"], output)
    about = describe(question, str(model), run, "frozen", seed)
    open_output(folder, about)
    runs = {"": run}
    if not run.is_random:
        runs[WITH_RANDOM] = open_run(f"{RANDOM}:{run.checkpoint}")
    found = {}
    for ending, opened in runs.items():
        log.info(f"vectors of {len(question.target.cases)} cases by {opened.title}")
        vectors = vectors_of(opened, question.images, question.target, question.results, device, overwrite,
                             allow_other_intensities)  # fmt: skip
        made = cross_validate(vectors.of_case, question.target, question.folds, seed)
        found |= {f"{kind}{ending}": rows for kind, rows in made.items()}
        if opened is run:
            save_frozen(folder / MODEL, vectors, question.target, seed)
    found[CONSTANT[question.target.task]] = constant(question.target, question.folds)
    return finish(folder, question, question.folds, found, about, device, time.perf_counter() - started)


def _check_request(
    model: str, finetune: bool, plans: str | None, configuration: str, fold: Sequence[int] | None,
    options: Sequence[str], memory: float | None, continue_run: bool, num_processes: int | None,
) -> None:  # fmt: skip
    """Refuse flags that do not go together."""
    if started_by_torchrun():
        raise UserError("nnssl_classify runs in one process; start it without torchrun, and share out the folds of a "
                        "fine-tuning with -f")  # fmt: skip
    for flag, given in (("-f", fold), ("-set", options), ("-memory", memory), ("--c", continue_run), ("-p", plans),
                        ("-np", num_processes)):  # fmt: skip
        if given and not finetune:
            raise UserError(f"{flag} is for fine-tuning; add --finetune, or leave it out")
    if model == RANDOM and plans is None:
        raise UserError("-m random does not say which network; add -p PLANS and --finetune, or type random:RUN for the "
                        "network of a pretraining")  # fmt: skip
    if plans is not None and model != RANDOM:
        raise UserError("-p names the plans of random weights, and a RUN brings its own; leave it out, or type -m "
                        "random")  # fmt: skip
    if configuration != CONFIGURATION and model != RANDOM:
        raise UserError(f"-c {configuration} is for -m random, and a RUN brings its own configuration; leave it out")
    if memory is not None and not 0 < memory < 1e6:
        raise UserError(f"-memory {memory:g} is no memory in GiB; give a number above 0")


def _finetuning(
    question: Question, model: str, fold: Sequence[int] | None, output: str | Path | None, plans: str | None,
    configuration: str, options: Sequence[str], memory: float | None, continue_run: bool, overwrite: bool, seed: int,
    device: str, num_processes: int | None, allow: bool,
) -> tuple[Job, dict[str, Any], list[Fold]]:  # fmt: skip
    """What is trained, checked as far as it can be before anything is computed; and the folds that are chosen."""
    numbers = [one.number for one in question.folds]
    if strange := [number for number in fold or () if number not in numbers]:
        raise UserError(f"there is no fold {strange[0]} in {question.splits}; choose with -f among {numbers[0]} to "
                        f"{numbers[-1]}")  # fmt: skip
    chosen = [one for one in question.folds if not fold or one.number in fold]
    source = None if model == RANDOM else open_run(model)
    start = RANDOM if source is None else start_of(source)
    plans_name = str(plans) if source is None else source.content["plans"]["plans_name"]
    configuration = configuration if source is None else source.content["configuration"]
    folder = output_folder(question, start, "finetuned", plans_name, configuration, output)
    about = describe(question, model, source, "finetuned", seed)
    pretrained = None if source is None else pretrained_of(source.content, source.checkpoint)

    def job(prepared: Prepared | None) -> Job:
        given = None if source is None or source.is_random else pretrained
        return Job(folder, question.target, prepared, given, start, options, seed, device, memory, continue_run,
                   overwrite)  # fmt: skip

    job(None).check(chosen)
    open_output(folder, about)
    if pretrained is None:
        return job(prepare_own(question.dataset, plans_name, configuration, num_processes)), about, chosen
    return job(prepare_as(pretrained, question.dataset, num_processes, allow)), about, chosen


def output_folder(
    question: Question, start: str, way: Way, plans: str, configuration: str, given: str | Path | None
) -> Path:
    """The folder of a classification: the given one, or beside nnU-Net's models of the dataset."""
    if given is not None:
        return Path(given)
    return question.results / f"classification_{question.target.name}__{start}_{way}__{plans}__{configuration}"


def describe(question: Question, model: str, source: Run | None, way: Way, seed: int) -> dict[str, Any]:
    """What `classification.json` says, JSON types; `source` is None for random weights of the dataset's plans."""
    target = question.target
    weights = None if source is None or source.is_random else model_of(source).fingerprint
    return {
        "dataset": question.dataset,
        "target": target.name,
        "task": target.task,
        "classes": list(target.classes),
        "cases": len(target.cases),
        "groups": len(set(target.groups)),
        "splits": str(question.splits),
        "way": way,
        "start": RANDOM if source is None else start_of(source),
        "weights": weights,
        "model": model,
        "seed": seed,
        "versions": package_versions(),
    }


def open_output(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder, or check that it holds a classification of the same target by the same way."""
    check_output_folder(folder)
    file = folder / ABOUT
    if file.is_file():
        found = read_json(file, ClassificationFile, "give a new folder as -o")
        keys = ("dataset", "target", "way", "start", "classes", "weights", "seed")
        if others := [key for key in keys if found.get(key, about[key]) != about[key]]:
            kind = _SEVERAL.get(others[0], f"another {others[0]}")
            raise UserError(f"{folder} holds results with {kind}; give another -o")
    elif folder.is_dir() and any(not file.name.endswith(WRITING) for file in folder.iterdir()):
        raise UserError(f"{folder} holds other files; give a new folder as -o")
    write_json(file, about)


def finish(
    folder: Path, question: Question, folds: Sequence[Fold], found: dict[str, Predictions], about: dict[str, Any],
    device: str, seconds: float,
) -> Classified:  # fmt: skip
    """Score the predictions, and write tables and the picture."""
    target = question.target
    rated = [rate(kind, rows, target, folds) for kind, rows in found.items()]
    cost = {"seconds": round(seconds, 1), "memory_gib": round(memory_gib(torch.device(device)), 2), "device": device}
    write_results(folder, rated, target, folds, {**about, **cost})
    with dispensable("results.png"):
        draw_results(folder / "results.png", rated[:-1], target, f"{question.dataset}: {target.name}, {about['start']}")
    lines = table_lines(rated, target)
    for line in lines:
        log.info(line)
    log.info(f"{folder}: {cost['seconds']:.1f} s, {cost['memory_gib']:.2f} GiB")
    line = command("nnssl_classify_predict", "-i", INPUT, "-o", "OUTPUT.csv", "-m", folder, *device_flag(device, True))
    return Classified(folder, tuple(rated), tuple(lines), (line,))

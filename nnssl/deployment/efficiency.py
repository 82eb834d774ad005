"""What the prediction of a case costs: the columns of FLARE's efficiency table (methods.md 5.6, Table 6)."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.core.names import csv_table
from nnssl.data.pool import quietly
from nnssl.deployment.cases import list_cases, why_left_out
from nnssl.deployment.model_folder import load_folds, open_folds
from nnssl.deployment.predict import check_step_size, make_predictor
from nnssl.deployment.session import need, open_model, usual_session_device

log = logging.getLogger("nnssl")

PERIOD_S = 0.1  # of the samples (methods.md 5.6)
_MB = 2**20
_LOG, _READY = "log.txt", "ready.txt"  # in the folder of a job

Sample = tuple[float, float]  # seconds since the process began, MB

# FLARE tolerates this much without a loss of points (methods.md 5.5).
TOLERATED_S, TOLERATED_MB = 15.0, 4096.0
COLUMNS = ("case", "size", "seconds", "loading_s", "max_mb", "area_mb_s", "within_15_s", "within_4_gb")


@dataclass(frozen=True)
class CaseCost:
    """One row.

    Args:
        case: name.
        size: of the image in voxels (x, y, z).
        seconds: from the start of a fresh Python to its end: imports, loading of the model, reading of the image,
            prediction, writing of the label map.
        loading_s: the part of it until the model was ready.
        max_mb: largest memory of the samples, in MB of 2^20 bytes.
        area_mb_s: area under the memory-time curve in MB s.
    """

    case: str
    size: tuple[int, ...]
    seconds: float
    loading_s: float
    max_mb: float
    area_mb_s: float

    @property
    def row(self) -> tuple[str, ...]:
        """Its values as text, in the order of `COLUMNS`."""
        within = (self.seconds <= TOLERATED_S, self.max_mb <= TOLERATED_MB)
        return (self.case, "x".join(map(str, self.size)), f"{self.seconds:.2f}", f"{self.loading_s:.2f}",
                f"{self.max_mb:.0f}", f"{self.area_mb_s:.0f}", *("yes" if ok else "no" for ok in within))  # fmt: skip


def measure_efficiency(
    model: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    step_size: float = 0.5,
    disable_tta: bool = False,
    device: str | None = None,
    threads: int = 0,
    report: Callable[[CaseCost], None] | None = None,
    refuse: Callable[[str, str], None] | None = None,
) -> list[CaseCost]:
    """Predict each case of a folder in a fresh process, one after the other, and measure its time and memory.

    A process does what the prediction commands do with one case and without workers (-npp 0 -nps 0); its label map is
    thrown away. Memory is sampled every 0.1 s. With "cpu" it is the resident memory of the process and its children;
    with "cuda" the memory in use on the first visible card above what was in use before, so leave the card to this
    function (the process's CUDA context counts, as in nvidia-smi).

    Args:
        model: a model folder, or an ONNX file of `export_onnx`.
        images: folder with files named like case_0000.nii.gz.
        output: CSV file, replaced in one piece after every case.
        folds: of a model folder; several are an ensemble; None is fold 0.
        checkpoint: file name of the checkpoint in a model folder.
        step_size: of the sliding window, as a fraction of the patch.
        disable_tta: do not mirror.
        device: "cuda" or "cpu", where the network computes and whose memory is measured; None: cuda where PyTorch, and
            for a file ONNX Runtime, can use a card.
        threads: of the network; 0 is one a core.
        report: called with each row as soon as it is measured.
        refuse: called with the name of each case whose files cannot be used, and the reason.

    Raises:
        UserError: model or images are missing or wrong, a package is missing, the prediction of a case failed, or no
            case can be used.
    """
    need("psutil")
    check_step_size(step_size)
    model, names = Path(model), tuple(str(fold) for fold in folds or (0,))
    if folds and model.is_file():
        raise UserError(f"-f chooses folds of a model folder, and {model} is a file with one fold; leave it out")
    device = resolve_device(usual_session_device() if device is None and model.is_file() else device)
    is_file = model.is_file()  # opened to see if it can be used
    about = (open_model(model, "cpu", 1) if is_file else open_folds(model, names, checkpoint)).description
    cases = list_cases(Path(images), about.dataset_json)
    read_mb = _reader(device)
    costs, reason = [], None
    for case, files in cases.items():
        if (reason := why_left_out(files, about.plans, about.configuration, about.dataset_json)) is not None:
            log.warning("%s is left out: %s", case, reason)
            if refuse is not None:
                refuse(case, reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            job = (model, names, checkpoint, files, Path(folder), step_size, disable_tta, device, threads)
            costs.append(_measure(case, _size(files, about.plans), Path(folder), job, read_mb))
        if report is not None:
            report(costs[-1])
        if output is not None:
            replace_file(Path(output), csv_table(COLUMNS, [cost.row for cost in costs]).encode())
    if not costs:
        raise UserError(f"no image can be used; the last one: {reason}")
    return costs


def _reader(device: str) -> Callable[[int], float]:
    """What reads the memory of a process, in MB, by its number."""
    if device == "cpu":
        return resident_mb
    before = used_on_card_mb()  # with the context of this process, which this very call makes
    return lambda _process_id: max(0.0, used_on_card_mb() - before)


def _size(files: Sequence[str], plans: dict[str, Any]) -> tuple[int, ...]:
    """Size (x, y, z) of an image in voxels, read as nnU-Net reads it."""
    with quietly():
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        image, _ = PlansManager(plans).image_reader_writer_class().read_images(files)
    return tuple(reversed(image.shape[1:]))


def _measure(
    case: str, size: tuple[int, ...], folder: Path, job: tuple[Any, ...], read_mb: Callable[[int], float]
) -> CaseCost:
    """The cost of a `predict_case` with the arguments `job`, which writes to the folder."""
    process = multiprocessing.get_context("spawn").Process(target=predict_case, args=job)
    process.start()
    begin = time.time()
    number = process.pid
    assert number is not None  # it has been started
    try:
        samples = watch(process, lambda: read_mb(number))
    finally:
        process.kill()  # does nothing to one that has ended
        process.join()
    if process.exitcode != 0:
        raise UserError(f"the prediction of {case} failed with exit code {process.exitcode} "
                        f"({_last_words(folder)}); the prediction command shows all that it says")  # fmt: skip
    loading_s = float((folder / _READY).read_text()) - begin
    return CaseCost(case, size, samples[-1][0], loading_s, max(mb for _, mb in samples), area(samples))


def _last_words(folder: Path) -> str:
    lines = (folder / _LOG).read_text(errors="replace").split("\n") if (folder / _LOG).is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def watch(process: Any, read_mb: Callable[[], float]) -> list[Sample]:
    """Read the memory of a started `multiprocessing.Process` every 0.1 s until it ends.

    The last sample, at the end, repeats the memory of the one before: there is nothing left to read.
    """
    begin = time.perf_counter()
    samples: list[Sample] = []
    while process.is_alive():
        now = time.perf_counter() - begin
        samples.append((now, read_mb()))
        process.join(max(0.0, now + PERIOD_S - (time.perf_counter() - begin)))
    samples.append((time.perf_counter() - begin, samples[-1][1] if samples else 0.0))
    return samples


def area(samples: Sequence[Sample]) -> float:
    """Area under the curve by the trapezoid rule, in MB s."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))


def resident_mb(process_id: int) -> float:
    """Resident memory of a process and its children, in MB of 2^20 bytes; shared pages count twice.

    Raises:
        UserError: psutil is missing.
    """
    psutil = need("psutil")
    total = 0
    try:
        parent = psutil.Process(process_id)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended meanwhile
        pass
    return total / _MB


def used_on_card_mb() -> float:
    """Memory in use on the first visible card, by all processes, in MB of 2^20 bytes."""
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / _MB


def predict_case(
    model: Path, folds: Sequence[str], checkpoint: str, images: Sequence[str], folder: Path, step_size: float,
    disable_tta: bool, device: str, threads: int,
) -> None:  # fmt: skip
    """Load the model, predict the case and write its label map, as the prediction commands do in one process.

    Args:
        model: an ONNX file or a model folder.
        folds: of the folder.
        checkpoint: file name in a fold's folder.
        images: files of the case, one a channel.
        folder: an empty one, for the label map, what the process prints (`_LOG`) and the time at which the model was
            ready (`_READY`).
        step_size: as in `predict_onnx`.
        disable_tta: as in `predict_onnx`.
        device: as in `predict_onnx`.
        threads: as in `predict_onnx`.
    """
    with open(folder / _LOG, "wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what is printed must not follow the error, which is not buffered
        sys.stdout.reconfigure(line_buffering=True)
    if device == "cpu":  # as nnUNetv2_predict does
        torch.set_num_threads(threads or multiprocessing.cpu_count())
    if model.is_dir():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(step_size, use_mirroring=not disable_tta, device=torch.device(device),
                                    allow_tqdm=False)  # fmt: skip
        load_folds(predictor, model, folds, checkpoint)
    else:
        predictor = make_predictor([open_model(model, device, threads)], step_size, disable_tta, device)
    (folder / _READY).write_text(str(time.time()))
    predictor.predict_from_files_sequential([list(images)], [str(folder / "case")])

"""One case predicted in a process of its own, for `nnssl.deployment.efficiency` to watch."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.deployment.session import need

PERIOD_S = 0.1  # of the samples (methods.md 5.6)
_MB = 2**20

Sample = tuple[float, float]  # seconds since the process began, MB


def watch(process: Any, read_mb: Callable[[], float]) -> list[Sample]:
    """Read the memory of a started `multiprocessing.Process` every 0.1 s until it ends, and once for the end.

    The last sample has the memory of the one before: there is nothing left to read.
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
    """Resident memory of a process and all that it started, in MB of 2^20 bytes; pages that they share count twice.

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
    """Memory in use on the first visible card, by all processes, in MB of 2^20 bytes.

    Raises:
        UserError: torch sees no card.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA card, whose memory was to be measured; give -device cpu")
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / _MB


@dataclass(frozen=True)
class Job:
    """What to predict with what.

    Args:
        model: an ONNX file or a model folder.
        folds, checkpoint: of the folder.
        images: files of the case, one a channel.
        folder: an empty one, for the label map, for what the process says (`LOG`) and for the time at which the model
            was ready (`READY`).
        step_size, disable_tta, device, threads: as in `predict_onnx`.
    """

    model: Path
    folds: tuple[str, ...]
    checkpoint: str
    images: tuple[str, ...]
    folder: Path
    step_size: float
    disable_tta: bool
    device: str
    threads: int


LOG, READY = "log.txt", "ready.txt"


def predict_case(job: Job) -> None:
    """Load the model, predict the case and write its label map, as the prediction commands do in one process."""
    with open(job.folder / LOG, "wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    import torch

    if job.device == "cpu":  # as nnUNetv2_predict does
        torch.set_num_threads(job.threads or multiprocessing.cpu_count())
    if job.model.is_dir():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        from nnssl.deployment.model_folder import load_folds

        predictor = nnUNetPredictor(job.step_size, use_mirroring=not job.disable_tta, device=torch.device(job.device),
                                    allow_tqdm=False)  # fmt: skip
        load_folds(predictor, job.model, job.folds, job.checkpoint)
    else:
        from nnssl.deployment.predict import make_predictor, open_model

        model = open_model(job.model, job.device, job.threads)
        predictor = make_predictor([model], job.step_size, job.disable_tta, job.device)
    (job.folder / READY).write_text(str(time.time()))
    predictor.predict_from_files_sequential([list(job.images)], [str(job.folder / "case")])

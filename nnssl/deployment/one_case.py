"""One case predicted in a process of its own, for `nnssl.deployment.efficiency` to watch."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path


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

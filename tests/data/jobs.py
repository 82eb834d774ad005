"""Jobs in processes of their own, for tests of what several of them do at once."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from nnssl.data import folder_volumes
from nnssl.data.plan_and_preprocess import plan_and_preprocess, prepare_datasets
from nnssl.finetuning import unlabelled
from nnssl.finetuning.transfer_plans import transfer

Job = tuple[Callable[..., Any], dict[str, Any]]


def start(job: Job, log: Path, folders: Mapping[str, str], slowly: float = 0.0,
          stuck_after: int | None = None) -> BaseProcess:  # fmt: skip
    """Start a job.

    Args:
        job: a function of this module and its keywords.
        log: file for what it says.
        folders: nnU-Net's variables.
        slowly: seconds that every case takes longer.
        stuck_after: the number of cases after which the next one takes for ever.
    """
    context = multiprocessing.get_context("forkserver")  # that of tests/preloaded.py
    process = context.Process(target=_run, args=(job, log, dict(folders), slowly, stuck_after))
    process.start()
    return process


def together(jobs: list[Job], logs: Path, folders: Mapping[str, str]) -> str:
    """Run jobs at once, to their end; returns what they have said. An error in one of them fails the test."""
    files = [logs / f"job_{number}.txt" for number in range(len(jobs))]
    processes = [start(job, file, folders, slowly=0.1) for job, file in zip(jobs, files, strict=True)]
    for process in processes:
        process.join(300)
    said = "\n".join(file.read_text() for file in files)
    assert [process.exitcode for process in processes] == [0] * len(jobs), said
    return said


def plan(**options: Any) -> None:
    plan_and_preprocess(**{"preset": "nnsslPlans_tiny", "num_processes": 1, "show_progress": False, **options})


def pretrain(dataset_ids: list[int]) -> None:
    """As far as the datasets are prepared."""
    found = prepare_datasets(dataset_ids, "nnsslPlans_tiny", "3d_fullres", 1, True)
    logging.getLogger("nnssl").info("trains on %s", ", ".join(found.folders[0].cases()))


def finetune(**options: Any) -> None:
    transfer(**options)


def distil(plans: dict[str, Any], home: Path) -> None:
    found = unlabelled.prepare_unlabelled(plans, "3d_fullres", home, True, logging.getLogger("nnssl").info)
    logging.getLogger("nnssl").info("learns from %s", ", ".join(found.cases))


def _run(job: Job, log: Path, folders: dict[str, str], slowly: float, stuck_after: int | None) -> None:
    os.environ.update({"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", **folders})
    torch.set_num_threads(1)
    handler = logging.FileHandler(log)
    logging.getLogger("nnssl").addHandler(handler)
    logging.getLogger("nnssl").setLevel(logging.INFO)
    prepare, done = folder_volumes.prepare_case, itertools.count()

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(600 if next(done) == stuck_after else slowly)
        return prepare(*arguments, **options)

    folder_volumes.prepare_case = slow
    unlabelled.default_processes = lambda asked=None: 1
    function, keywords = job
    try:
        function(**keywords)
    except BaseException:
        logging.getLogger("nnssl").exception("this job failed")
        raise

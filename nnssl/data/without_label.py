"""Cases without a label in a dataset that has labels: volumes for pretraining.

They are prepared in a folder of their own, since stock training lists nnU-Net's folder and would learn background from
them. A record beside it says which volumes count, and what they were made from.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.lock import waiting_lock
from nnssl.core.own_files import WithoutLabelFile
from nnssl.data.pool import map_cases
from nnssl.data.preprocessing import PreprocessingJob, prepare_case
from nnssl.data.raw import RawCase
from nnssl.data.report import volume_settings
from nnssl.data.storage import done_cases, masked_cases

_SAVE_EVERY = 20  # cases: what a killed run has done is kept

logger = logging.getLogger("nnssl")


def folder_without_label(images: Path) -> Path:
    """Where they are prepared; `images` is nnU-Net's folder of the volumes with labels."""
    return images.with_name(f"{images.name}_imagesTr_unlabelled")


def ready_without_label(images: Path) -> frozenset[str]:
    """Names of the cases that are ready, and have not been prepared with a label since; nothing is opened but JSON."""
    folder = folder_without_label(images)
    recorded = _read(folder)["files"]
    if not recorded:
        return frozenset()
    return frozenset((done_cases(folder) & masked_cases(folder) & recorded.keys()) - done_cases(images))


def prepare_without_label(
    cases: Mapping[str, RawCase], part: Iterable[str], job: PreprocessingJob, num_processes: int, show_progress: bool
) -> dict[str, str]:
    """Prepare what is not ready, or was made from other files or with other settings; forget cases that are gone.

    Args:
        cases: of the dataset, all that have no label.
        part: names of those that this job prepares.
        job: of the dataset's labelled cases.
        num_processes: at once.
        show_progress: whether to draw a bar.

    Returns:
        Why cases could not be prepared, by name.
    """
    folder, settings = folder_without_label(job.folder), volume_settings(job.plans, job.configuration)
    known = _read(folder)
    if not cases and not known["files"]:
        return {}
    states = {name: _state(case) for name, case in cases.items()}
    same = known["files"] if known["settings"] == settings else {}
    kept = {name for name in done_cases(folder) & masked_cases(folder) if same.get(name) == states.get(name)}
    todo = [cases[name] for name in sorted(set(part) & cases.keys() - kept)]
    made: dict[str, Any] = {}
    reasons = {}
    task = partial(prepare_case, job=replace(job, folder=folder))
    for case in map_cases(task, todo, num_processes, "Preprocessing cases without label", show_progress):
        for warning in case.warnings:
            logger.warning("%s: %s", case.name, warning)
        if case.reason is None:
            made[case.name] = states[case.name]
        else:
            reasons[case.name] = case.reason
        if len(made) % _SAVE_EVERY == 0:
            _note(folder, settings, made, cases.keys())
    _note(folder, settings, made, cases.keys())
    ready = ready_without_label(job.folder)
    if ready:
        count = f"{len(ready)} cases" if len(ready) > 1 else "1 case"
        logger.info("%s: %s without label ready for pretraining in %s", folder.parent.name, count, folder)
    return reasons


def _note(folder: Path, settings: dict[str, Any], made: Mapping[str, Any], cases: Iterable[str]) -> None:
    """Add volumes to the record, and take out cases that are no longer without a label or no longer there."""
    names = set(cases)

    def with_these(before: dict[str, Any]) -> dict[str, Any]:
        files = {**(before["files"] if before["settings"] == settings else {}), **made}
        return {"settings": settings, "files": {name: files[name] for name in sorted(files.keys() & names)}}

    if with_these(before := _read(folder)) == before:  # the folder may be one that cannot be written to
        return
    with waiting_lock(folder.with_name(f".{folder.name}.lock"), f"the record of {folder}", logger.info):
        write_json(_record(folder), with_these(_read(folder)))


def _record(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(_record(folder), WithoutLabelFile)
        return {"settings": found["settings"], "files": found["files"]}
    except UserError:  # none yet, or no record: what it would say is found out anew
        return {"settings": None, "files": {}}


def _state(case: RawCase) -> list[list[int]] | None:
    """Size and time of the files of a case; None where they cannot be looked at, which reading them will explain."""
    try:
        return [[found.st_size, found.st_mtime_ns] for found in map(os.stat, case.images)]
    except OSError:
        return None

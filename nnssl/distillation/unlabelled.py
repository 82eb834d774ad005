"""Volumes without labels beside a labelled dataset (`imagesUn`), for training with a teacher."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import UnlabelledFile
from nnssl.data.pool import default_processes, map_cases
from nnssl.data.preprocessing import PreprocessingJob, prepare_case
from nnssl.data.raw import UNLABELLED, RawCase, RawDataset, first_ct_channel, read_dataset_json, read_unlabelled
from nnssl.data.settings import check_settings, volume_settings
from nnssl.data.storage import done_cases

_PREFIX = f"{UNLABELLED}/"  # of an identifier: a labelled case may have the same name
_WAIT_S = 2.0
_FINEST_RATIO = 20  # of the repetitions that make up a share


@dataclass(frozen=True)
class UnlabelledCases:
    """Preprocessed volumes without labels.

    Args:
        folder: nnU-Net's files, `DatasetXXX/<data_identifier>_unlabelled`.
        cases: their names, sorted.
    """

    folder: Path
    cases: list[str]


def prepare_unlabelled(
    plans: dict[str, Any], configuration: str, home: Path, is_main: bool, say: Callable[[str], Any]
) -> UnlabelledCases:
    """Preprocess the dataset's `imagesUn` as its labelled cases were, unless that is done, in a folder of its own.

    Fingerprint, plans and the folder that stock training reads are not touched. What cannot be used is named and left
    out. Where the raw images are gone, what was preprocessed before is taken.

    Args:
        plans: of the training.
        configuration: of the plans.
        home: the dataset's folder in nnUNet_preprocessed.
        is_main: whether this process does it; others wait for it.
        say: takes a sentence for the user.

    Raises:
        UserError: the folder holds no images, or volumes made with other plans.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(plans).get_configuration(configuration)
    folder = home / f"{resolved.data_identifier}_unlabelled"
    raw = Path(os.environ.get("nnUNet_raw") or os.devnull) / plans["dataset_name"]
    if not (raw / UNLABELLED).is_dir():
        return UnlabelledCases(folder, sorted(done_cases(folder)))
    content = {key: value for key, value in read_dataset_json(raw).items() if key != "dataset"}
    cases, left_out = read_unlabelled(raw, content)
    record = home / f"{folder.name}.json"  # says that all of these cases have been tried
    if is_main and cases:
        check_settings(folder, volume_settings(plans, configuration))
        ct_channel = RawDataset(raw.name, raw, content, {}, {}, False).ct_channel
        if ct_channel is None:
            ct_channel = first_ct_channel(resolved.normalization_schemes)
        done = done_cases(folder)
        todo = [case for name, case in cases.items() if name not in done]
        left_out |= _preprocess(todo, PreprocessingJob(plans, configuration, content, folder, ct_channel), say)
        for name, reason in sorted(left_out.items()):
            say(f"WARNING: {UNLABELLED}/{name} is left out: {reason}")
        write_json(record, {"cases": sorted(cases), "left_out": left_out})
    while cases and not _tried(record, cases):  # no collective waits meanwhile, so that nothing times out
        time.sleep(_WAIT_S)
    return UnlabelledCases(folder, sorted(done_cases(folder) & cases.keys()))


class WithUnlabelled:
    """A data set of labelled cases to which volumes without labels are added, as nnU-Net's loader uses one.

    The loader draws identifiers at random, so that repeating them sets the share of either kind. Volumes without labels
    have no foreground: they are cropped at random. Their label map is nnU-Net's, -1 outside of the image's nonzero
    region and 0 inside, which its transforms turn into background.

    Args:
        labelled: data set of the labelled cases.
        unlabelled: data set of the others.
        share: of the patches that come from those, above 0 and below 1 (rounded to ratios of small numbers).
    """

    def __init__(self, labelled: Any, unlabelled: Any, share: float) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled
        odds = share / (1 - share) * len(labelled.identifiers) / len(unlabelled.identifiers)
        ratio = Fraction(odds).limit_denominator(_FINEST_RATIO) or Fraction(1, _FINEST_RATIO)
        named = [f"{_PREFIX}{name}" for name in unlabelled.identifiers]
        self.identifiers: list[str] = [*labelled.identifiers] * ratio.denominator + named * ratio.numerator

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, label map, label map of the previous stage or None, and properties."""
        if not is_unlabelled(identifier):
            case: tuple[Any, Any, Any, dict[str, Any]] = self._labelled.load_case(identifier)
            return case
        image, seg, previous, properties = self._unlabelled.load_case(identifier.removeprefix(_PREFIX))
        return image, seg, previous, {**properties, "class_locations": defaultdict(list)}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As `load_case`."""
        return self.load_case(identifier)


def is_unlabelled(identifier: str) -> bool:
    """Tell whether an identifier of `WithUnlabelled`, a key of a batch, is that of a volume without labels."""
    return identifier.startswith(_PREFIX)


def share_of(labelled: int, unlabelled: int) -> float:
    """Share of the patches without labels where none is asked for: that of the cases, at most a half."""
    return min(0.5, unlabelled / (labelled + unlabelled))


def _preprocess(todo: list[RawCase], job: PreprocessingJob, say: Callable[[str], Any]) -> dict[str, str]:
    """Why cases could not be used, by name."""
    if not todo:
        return {}
    processes = default_processes()
    say(f"Preprocessing {len(todo)} volumes of {UNLABELLED} into {job.folder} with the plans of this training, in "
        f"{processes} processes; this is done once")  # fmt: skip
    results = map_cases(partial(prepare_case, job=job), todo, processes, "Preprocessing", show_progress=False)
    return {case.name: case.reason for case in results if case.reason is not None}


def _tried(record: Path, cases: dict[str, RawCase]) -> bool:
    return record.is_file() and read_json(record, UnlabelledFile, "delete it")["cases"] == sorted(cases)

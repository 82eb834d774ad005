"""Stock preprocessing of a case, with or without label, with its body mask; and of many, shared by several jobs.

A job claims a case before it hands it to a process, and no more cases than it has processes. It returns at the end to
the cases of other jobs: these are done by then, or left behind by a job that ended, and are taken over.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase
from nnssl.core.lock import Lock
from nnssl.data.check_case import LoadedCase, body_mask_ct, body_mask_normalized_ct, load_case, orientation
from nnssl.data.check_files import refuse_too_large_at
from nnssl.data.pool import map_cases, quietly
from nnssl.data.raw import RawCase, first_ct_channel, label_values
from nnssl.data.raw_files import CaseFiles
from nnssl.data.records import Record, Records
from nnssl.data.storage import claim_of, claimed, remove_empty_temporary_folder, save_body, save_case

# These are no fault of a volume and end the run.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_POLL_S = 1.0
Task = RawCase | str  # a raw case, or the name of a preprocessed one that lacks its body mask

logger = logging.getLogger("nnssl")


@dataclass(frozen=True)
class PreprocessingJob:
    """What all cases of a dataset share; picklable, for other processes.

    Args:
        plans: nnU-Net's.
        configuration: of the plans.
        dataset_json: of the dataset; without its list of cases.
        folder: nnU-Net's folder of the preprocessed volumes.
        ct_channel: first channel in Hounsfield units in the raw files, None if there is none.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    folder: Path
    ct_channel: int | None


@dataclass(frozen=True)
class Prepared:
    """A case that is done, or why it is left out.

    Args:
        name: of the case.
        reason: None where it is done.
        orientation: see `nnssl.data.check_case.LoadedCase`.
        warnings: as there.
        files: its raw files, with hashes; None where only a body mask was added, or a file is missing.
    """

    name: str
    reason: str | None = None
    orientation: str | None = None
    warnings: tuple[str, ...] = ()
    files: CaseFiles | None = None


def prepare_case(case: Task, job: PreprocessingJob) -> Prepared:
    """Preprocess a raw case; or, given the name of a case that nnU-Net has preprocessed, add its body mask.

    A fault of the volume becomes the reason of the result.

    Raises:
        OSError: no space left, or no permission to write.
        MemoryError: with the name of the case, for the whole run to report.
    """
    name, files = case if isinstance(case, str) else case.name, None
    try:
        if isinstance(case, str):
            return Prepared(name, orientation=_add_body(case, job))
        files = _files(case)  # before they are read, so that a later change shows
        loaded = _preprocess(case, job)
        # the files are still in memory
        files = None if files is None else files.hashed(case)
        return Prepared(name, orientation=loaded.orientation, warnings=loaded.warnings, files=files)
    except BadCase as bad:
        return Prepared(name, reason=str(bad), files=files)
    except MemoryError as error:
        raise MemoryError(f"{name}: {error or 'preprocessing it'}") from error
    except Exception as error:  # one odd volume must not stop the others; it is reported at the end
        if isinstance(error, OSError) and error.errno in _FATAL:
            raise
        logger.debug("%s", name, exc_info=True)
        return Prepared(name, reason=f"preprocessing failed: {type(error).__name__}: {error}"[:300], files=files)


def _files(case: RawCase) -> CaseFiles | None:
    try:
        return CaseFiles.of(case)
    except OSError:  # the reader explains it
        return None


def _preprocess(case: RawCase, job: PreprocessingJob) -> LoadedCase:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(job.plans)
    configuration = plans.get_configuration(job.configuration)
    num_channels = len(configuration.normalization_schemes)
    loaded = load_case(
        case, plans.image_reader_writer_class, num_channels, job.ct_channel, label_values(job.dataset_json)
    )
    check_size_at(loaded, plans.transpose_forward, configuration.spacing)
    body = None
    if job.ct_channel is not None:
        body = body_mask_ct(loaded.image[job.ct_channel].transpose(plans.transpose_forward))
    preprocessor = configuration.preprocessor_class(verbose=False)
    with quietly():
        image, seg, properties = preprocessor.run_case_npy(
            loaded.image, loaded.label, loaded.properties, plans, configuration, job.dataset_json
        )
        if body is None:
            body = seg[0] >= 0  # nnU-Net writes -1 outside the nonzero mask
        else:
            body = mask_onto_grid(body, image.shape[1:], properties, plans.transpose_forward, configuration)
    _check_body(body, image)
    save_case(job.folder, case.name, image, seg, properties, body, tuple(configuration.patch_size))
    return loaded


def check_size_at(loaded: LoadedCase, axes: list[int], target: list[float | None] | None) -> None:
    """Raise BadCase where a case is too large, or empty, at the plans' spacing; `axes` are their transpose."""
    image = loaded.image.transpose([0, *(axis + 1 for axis in axes)])
    spacing = [float(loaded.properties["spacing"][axis]) for axis in axes]
    refuse_too_large_at(image.shape[1:], spacing, target, len(image), image)


def mask_onto_grid(
    body: np.ndarray, shape: tuple[int, ...], properties: dict[str, Any], axes: list[int], configuration: Any
) -> np.ndarray:
    """Crop and resample a mask (Z, Y, X), transposed already, as nnU-Net did with the segmentation."""
    crop = tuple(slice(int(low), int(high)) for low, high in properties["bbox_used_for_cropping"])
    spacing = [properties["spacing"][axis] for axis in axes]
    cropped = body[crop][None].astype(np.int8)
    return np.asarray(configuration.resampling_fn_seg(cropped, shape, spacing, configuration.spacing))[0] > 0


def _add_body(name: str, job: PreprocessingJob) -> str | None:
    """Mask of a case that nnU-Net has preprocessed, from its image; nnU-Net's files are only read."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    image, seg, _, properties = nnUNetDatasetBlosc2(str(job.folder), [name]).load_case(name)
    image = image[:]
    plans = PlansManager(job.plans)
    channel = first_ct_channel(plans.get_configuration(job.configuration).normalization_schemes)
    if channel is None:
        body = np.asarray(seg[0] >= 0)
    else:
        body = body_mask_normalized_ct(image[channel], plans.foreground_intensity_properties_per_channel[str(channel)])
    _check_body(body, image)
    save_body(job.folder, name, body, image)
    return orientation(properties)


def _check_body(body: np.ndarray, image: np.ndarray) -> None:
    if not body.any():
        raise BadCase("all air: no body voxel on the grid of the plans")
    if not np.isfinite([image.min(), image.max()]).all():
        raise BadCase("non-finite values (NaN or infinity) after preprocessing")


@dataclass
class SharedWork:
    """Prepares cases, together with other jobs that do the same.

    Args:
        folder: of the volumes.
        records: of the folder, as they were when the cases were chosen.
        settings: digest of what the volumes are made with; volumes of other jobs with other settings are made again.
        prepare: makes a case; picklable.
        finish: called with what `prepare` returns, while the case is still claimed; returns its record.
        replaced: cases whose volume is replaced and must not be trusted meanwhile.
        say: takes a sentence for the user.
        title: what is done, for the bar and for messages.
    """

    folder: Path
    records: Records
    settings: str
    prepare: Callable[[Task], Prepared]
    finish: Callable[[Prepared], Record]
    replaced: Collection[str] = ()
    say: Callable[[str], object] = logger.info
    title: str = "Preprocessing"
    _claims: dict[str, Lock] = field(default_factory=dict, init=False)
    _by_others: list[Record] = field(default_factory=list, init=False)
    _awaited: list[Task] = field(default_factory=list, init=False)
    _told: set[tuple[str, int]] = field(default_factory=set, init=False)

    def run(self, cases: Sequence[Task], num_processes: int, show_progress: bool) -> Iterator[Record]:
        """Records of all cases as they get ready, in this job or another.

        Raises:
            UserError, OSError: see `map_cases` and `prepare`.
        """
        prepared_before = {name: _prepared(self.records.get(name)) for name in map(_name, cases)}
        try:
            while cases:
                self._awaited = []
                tasks = self._claimable(cases, prepared_before)
                if (first := next(tasks, None)) is not None:
                    yield from self._prepare_all(chain([first], tasks), num_processes, len(cases), show_progress)
                yield from self._results_of_others()
                if len(self._awaited) == len(cases):
                    self._wait()
                cases, show_progress = self._awaited, False
        finally:
            for name in list(self._claims):
                self._release(name)
            remove_empty_temporary_folder(self.folder)

    def _prepare_all(
        self, tasks: Iterator[Task], num_processes: int, total: int, show_progress: bool
    ) -> Iterator[Record]:
        for prepared in map_cases(self.prepare, tasks, num_processes, self.title, show_progress, total):
            record = self.finish(prepared)
            self.records.append([record])  # before the claim is released, so that the next holder sees the record
            self._release(record.case)
            yield record
            yield from self._results_of_others()

    def _claimable(self, cases: Sequence[Task], prepared_before: dict[str, str | None]) -> Iterator[Task]:
        """Cases as this job claims them, one at a time; those of other jobs go to their lists."""
        for case in cases:
            name = _name(case)
            claim = claimed(self.folder, name)
            if claim is None:
                self._awaited.append(case)
                continue
            self._claims[name] = claim
            self.records.refresh()
            record = self.records.get(name)
            if record is not None and self._is_result(record, prepared_before[name]):
                self._by_others.append(record)
                self._release(name)
                continue
            if name in self.replaced:
                begun = record or Record(name, None)
                self.records.append([replace(begun, begun=True)])
            yield case

    def _is_result(self, record: Record, prepared_before: str | None) -> bool:
        """Whether another job has prepared a case since this one decided to."""
        return not record.begun and record.prepared != prepared_before and record.settings == self.settings

    def _results_of_others(self) -> Iterator[Record]:
        found, self._by_others = self._by_others, []
        yield from found

    def _wait(self) -> None:
        """Say which job holds the cases that are left, and wait a moment."""
        for name in map(_name, self._awaited):
            holder = claim_of(self.folder, name).holder()
            if holder is not None and (who := (holder.host, holder.process)) not in self._told:
                self._told.add(who)
                self.say(f"waiting for {name} in {self.folder}, which is prepared by {holder}")
                break
        time.sleep(_POLL_S)

    def _release(self, name: str) -> None:
        self._claims.pop(name).release()


def _name(case: Task) -> str:
    return case if isinstance(case, str) else case.name


def _prepared(record: Record | None) -> str | None:
    return None if record is None else record.prepared

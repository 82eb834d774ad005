"""Stock preprocessing of one case, with or without label, and its body mask on the same grid."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase
from nnssl.data.body_mask import body_mask_ct, body_mask_normalized_ct
from nnssl.data.check_case import LoadedCase, load_case, orientation
from nnssl.data.check_files import refuse_too_large_at
from nnssl.data.pool import quietly
from nnssl.data.raw import RawCase, first_ct_channel, label_values
from nnssl.data.records import CaseFiles
from nnssl.data.storage import save_body, save_case

# Not the fault of a volume: these end the run.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

logger = logging.getLogger("nnssl")


@dataclass(frozen=True)
class PreprocessingJob:
    """What all cases of a dataset share; plain, so that it can be sent to other processes.

    Args:
        plans: nnU-Net's.
        configuration: of the plans.
        dataset_json: of the dataset; its list of cases is not needed.
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
    """A case that is done, or the reason for which it is left out.

    Args:
        name: of the case.
        reason: None where it is done.
        orientation: see `nnssl.data.check_case.LoadedCase`.
        warnings: as there.
        files: what it was made from, with hashes; None where only a body mask was added, or a file is missing.
    """

    name: str
    reason: str | None = None
    orientation: str | None = None
    warnings: tuple[str, ...] = ()
    files: CaseFiles | None = None


def prepare_case(case: RawCase | str, job: PreprocessingJob) -> Prepared:
    """Preprocess a raw case; or, given the name of a case that nnU-Net has preprocessed, add its body mask.

    Whatever is wrong with the volume becomes the reason of the result.

    Raises:
        OSError: no space left, or no permission to write.
        MemoryError: with the name of the case, for the whole run to report.
    """
    name, files = case if isinstance(case, str) else case.name, None
    try:
        if isinstance(case, str):
            return Prepared(name, orientation=_add_body(case, job))
        files = _files(case)  # before they are read: a later change shows
        loaded = _preprocess(case, job)
        # the files are still in memory
        files = None if files is None else files.hashed(case)
        return Prepared(name, orientation=loaded.orientation, warnings=loaded.warnings, files=files)
    except BadCase as bad:
        return Prepared(name, reason=str(bad), files=files)
    except MemoryError as error:
        raise MemoryError(f"{name}: {error or 'preprocessing it'}") from error
    except Exception as error:  # one odd volume must not stop the others; its reason is reported at the end
        if isinstance(error, OSError) and error.errno in _FATAL:
            raise
        logger.debug("%s", name, exc_info=True)
        return Prepared(name, reason=f"preprocessing failed: {type(error).__name__}: {error}"[:300], files=files)


def _files(case: RawCase) -> CaseFiles | None:
    try:
        return CaseFiles.of(case)
    except OSError:  # a reader says better what is wrong
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
    """Raise BadCase where a case is too large at the plans' spacing, or nothing; `axes` are their transpose."""
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

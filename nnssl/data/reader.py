"""Which of nnU-Net's readers opens the images of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.core.errors import BadCase, UserError
from nnssl.core.files import read_json
from nnssl.core.schemas import DatasetFile
from nnssl.data.check_files import check_files
from nnssl.data.pool import itk_is_quiet, quietly
from nnssl.data.raw import RawDataset

READER = "overwrite_image_reader_writer"  # nnU-Net's key of dataset.json
REORIENTING = "NibabelIOWithReorient"  # nnU-Net's reader that turns images to RAS, and predictions back


def reorients(dataset_json: Mapping[str, Any]) -> bool:
    """Whether dataset.json asks nnU-Net to turn all images to RAS as it reads them."""
    return dataset_json.get(READER) == REORIENTING


def may_reorient(plans: Mapping[str, Any], dataset: RawDataset) -> bool:
    """Whether plans turn images to RAS, and could do so with the files of a dataset."""
    return plans.get("image_reader_writer") == REORIENTING and _is_nifti(dataset)


def choose_orientation(dataset: RawDataset, wanted: bool, existing: Mapping[str, Any] | None) -> bool:
    """Whether images are turned to RAS as they are read.

    Args:
        dataset: raw. Its dataset.json counts if it has cases; without them it is the copy in the preprocessed folder,
            which several plans share.
        wanted: whether to turn them even if dataset.json does not say so.
        existing: plans that are kept; None for new plans.

    Raises:
        UserError: they are to be turned, and the plans that are kept do not turn them.
    """
    wanted = wanted or (bool(dataset.cases) and reorients(dataset.dataset_json))
    if existing is None:
        return wanted
    reader = existing.get("image_reader_writer")
    if wanted and reader != REORIENTING:
        raise UserError(f"the plans {existing['plans_name']} of {dataset.name} read its images by {reader}, not by "
                        f"{REORIENTING}, which turns them to RAS; keep both with -overwrite_plans_name OTHER_NAME, or "
                        f"replace the plans and their volumes with --overwrite_plans")  # fmt: skip
    return bool(reader == REORIENTING)


def was_reoriented(home: Path, dataset: RawDataset) -> bool:
    """Whether images were turned to RAS when the fingerprint in `home`, the preprocessed folder, was made."""
    file = home / "dataset.json"
    return reorients(read_json(file, DatasetFile) if file.is_file() else dataset.dataset_json)


def find_reader(dataset: RawDataset, reorient: bool = False) -> Any:
    """Class of the reader that nnU-Net takes for the first image that it can open.

    A TIFF with one slice is passed over: nnU-Net would choose its reader of photographs for all of them.

    Args:
        dataset: whose images.
        reorient: whether to turn them to RAS even if dataset.json does not say so.

    Raises:
        UserError: nnU-Net cannot read files of that ending, or cannot turn them; or none of the files can be read.
    """
    if reorient or reorients(dataset.dataset_json):
        return _reorienting_reader(dataset)
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.reader_writer_registry import (
        LIST_OF_IO_CLASSES,
        determine_reader_writer_from_dataset_json,
    )

    ending = dataset.dataset_json["file_ending"]
    endings = sorted({e for reader in LIST_OF_IO_CLASSES for e in reader.supported_file_endings})
    if ending.lower() not in endings and "overwrite_image_reader_writer" not in dataset.dataset_json:
        raise UserError(f"nnU-Net does not read files that end in {ending} ({dataset.folder / 'dataset.json'}); it "
                        f"reads {', '.join(endings)}")  # fmt: skip
    photographs, reason = None, ""
    for case in dataset.cases.values():
        try:
            check_files(case.images[:1], None)
            with quietly(), itk_is_quiet():
                reader = determine_reader_writer_from_dataset_json(dataset.dataset_json, case.images[0], verbose=False)
        except (BadCase, RuntimeError) as error:  # the case is named with its reason when all are read
            reason = reason or str(error)
            continue
        if reader is not NaturalImage2DIO or ending.lower() not in (".tif", ".tiff"):
            return reader
        photographs = reader
    if photographs is None:
        raise UserError(f"{dataset.name}: none of the {len(dataset.cases)} images can be read, the first for this "
                        f"reason: {reason}; are they complete {ending} files?")  # fmt: skip
    return photographs


def _is_nifti(dataset: RawDataset) -> bool:
    return str(dataset.dataset_json["file_ending"]).lower() in (".nii", ".nii.gz")


def _reorienting_reader(dataset: RawDataset) -> Any:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    if not _is_nifti(dataset):
        raise UserError(f"{dataset.name} has {dataset.dataset_json['file_ending']} files, and nnU-Net's reader that "
                        f"turns images to RAS ({REORIENTING}: --reorient, or {READER} in dataset.json) takes NIfTI "
                        f"only; convert the files, or go without it")  # fmt: skip
    return NibabelIOWithReorient

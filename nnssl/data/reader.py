"""Which of nnU-Net's readers opens the images of a dataset."""

from __future__ import annotations

from typing import Any

from nnssl.data.check_files import check_files
from nnssl.data.quiet import itk_is_quiet, quietly
from nnssl.data.raw import RawDataset
from nnssl.errors import BadCase, UserError


def find_reader(dataset: RawDataset) -> Any:
    """The reader that nnU-Net takes for the first image that it can open; the class.

    A TIFF with one slice would make nnU-Net choose its reader of photographs for all of them: it is passed over.

    Raises:
        UserError: nnU-Net reads no file of that ending, or none of the files can be read.
    """
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

"""Which of nnU-Net's readers opens the images of a dataset."""

from __future__ import annotations

from typing import Any

from nnssl.data.quiet import quietly
from nnssl.data.raw import RawDataset
from nnssl.errors import UserError


def find_reader(dataset: RawDataset) -> Any:
    """The reader that nnU-Net takes for the first image that it can open; the class.

    A TIFF with one slice would make nnU-Net choose its reader of photographs for all of them: it is passed over.

    Raises:
        UserError: nnU-Net reads no file of that ending, or none of the files can be read; dataset.json names a reader
            that is none.
    """
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
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
    photographs = None
    for case in dataset.cases.values():
        try:
            with quietly():
                reader = determine_reader_writer_from_dataset_json(dataset.dataset_json, case.images[0], verbose=False)
        except RuntimeError:  # no reader could; the case is named with its reason when all are read
            continue
        if not isinstance(reader, type) or not issubclass(reader, BaseReaderWriter):
            named = dataset.dataset_json["overwrite_image_reader_writer"]
            raise UserError(f"{dataset.folder / 'dataset.json'} names {named!r} as overwrite_image_reader_writer, "
                            f"which is no reader of nnU-Net; take one of "
                            f"{', '.join(kind.__name__ for kind in LIST_OF_IO_CLASSES)}")  # fmt: skip
        if reader is not NaturalImage2DIO or ending.lower() not in (".tif", ".tiff"):
            return reader
        photographs = reader
    if photographs is None:
        first = next(iter(dataset.cases.values())).images[0]
        raise UserError(f"{dataset.name}: none of the {len(dataset.cases)} images can be read, {first} for one; "
                        f"are they complete {ending} files?")  # fmt: skip
    return photographs

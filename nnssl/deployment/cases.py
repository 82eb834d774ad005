"""The cases of a folder of images, named as nnU-Net wants them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nnssl.core.errors import BadCase, UserError
from nnssl.core.names import check_name
from nnssl.core.system import printable, why_not_utf8
from nnssl.data.check_case import check_images
from nnssl.data.check_files import refuse_too_large_at
from nnssl.data.image_headers import array_grid


def list_cases(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Files of every case by its name, sorted, as `nnUNetv2_predict` lists them: one file a channel.

    Entries that are no regular files are listed too, and not opened: `why_left_out` says what they are.

    Args:
        folder: of files such as case_0000.nii.gz.
        dataset_json: of the model, with its channels and file ending.

    Raises:
        UserError: the folder is missing or holds no such file, or a case lacks a channel.
    """
    ending = dataset_json["file_ending"]
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give -i a folder of images named like case_0000{ending}")
    cases: dict[str, list[str]] = {}
    for file in sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(ending)):
        # nnU-Net takes the last five characters before the ending as the channel, whatever they are
        stem = file[: -len(ending) - 5]
        files = cases.setdefault(printable(stem), [])
        if why_not_utf8(stem) is None:
            check_name(stem, "file", folder)
        if re.fullmatch(r".*_\d{4}", file[: -len(ending)], re.DOTALL):
            files.append(str(folder / file))
    cases = dict(sorted(cases.items()))
    if not cases:
        raise UserError(f"{folder} holds no image that the model can read; name them like case_0000{ending}")
    needed = _channels(dataset_json)
    for name, images in cases.items():
        if len(images) not in (1, needed):  # one file may hold all channels as a fourth axis
            raise UserError(f"{folder}: the case {name!r} has {len(images)} files with a channel number, the model "
                            f"wants {needed}; name them like {name or 'case'}_0000{ending}")  # fmt: skip
    return cases


def why_left_out(
    files: list[str],
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    previous: str | None = None,
) -> str | None:
    """Why a case cannot be predicted, judged by its files without reading their voxels into memory; None if it can.

    Args:
        files: of the case.
        plans: of the model.
        configuration: of the plans; if they have none of that name, the size at the plans' spacing is not judged.
        dataset_json: of the model.
        previous: label map of the first stage of a cascade.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    reader, axes = manager.image_reader_writer_class, manager.transpose_forward
    needed = _channels(dataset_json)
    try:
        headers = check_images(files, reader, previous)
        for header in headers[:1]:
            channels = header.size[3] if len(header.size) == 4 else len(files)
            if channels != needed and len(header.size) > 2:  # photographs have their colours in one file
                raise BadCase(f"wrong number of channels: {channels}, the model wants {needed}")
            size, spacing = array_grid(header, reader)
            if len(size) == 3 and configuration in plans["configurations"]:
                target = manager.get_configuration(configuration).spacing
                refuse_too_large_at([size[a] for a in axes], [spacing[a] for a in axes], target, channels)
    except BadCase as bad:
        return str(bad)
    return None


def _channels(dataset_json: dict[str, Any]) -> int:
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])

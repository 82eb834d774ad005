"""The cases of a folder of images, named as nnU-Net wants them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnssl.core.names import check_name
from nnssl.errors import UserError


def list_cases(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Files of every case by its name, sorted, as `nnUNetv2_predict` lists them: one file a channel.

    Args:
        folder: with files such as case_0000.nii.gz.
        dataset_json: of the model: channels and file ending.

    Raises:
        UserError: the folder is missing or holds no such file, or a case lacks a channel.
    """
    from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

    ending = dataset_json["file_ending"]
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; -i wants a folder of images named like case_0000{ending}")
    names = [str(name) for name in get_identifiers_from_splitted_dataset_folder(str(folder), ending)]
    files = sorted(entry.name for entry in os.scandir(folder))
    cases = {name: create_paths_fn(str(folder), files, ending, name) for name in names}
    if not cases:
        raise UserError(f"{folder} holds no image that the model can read; they must be named like case_0000{ending}")
    needed = len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])
    for name, images in cases.items():
        check_name(name, "file", folder)
        if len(images) not in (1, needed):  # one file may hold all channels as a fourth axis
            raise UserError(f"{folder}: the case {name!r} has {len(images)} files with a channel number, the model "
                            f"wants {needed}, named like {name or 'case'}_0000{ending}")  # fmt: skip
    return cases

"""Which images an embedding is made of."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.names import check_name, why_not_a_name
from nnssl.core.system import printable
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.raw import RawCase, read_dataset_json
from nnssl.deployment.cases import list_cases
from nnssl.features.images import channel_files

_FOLDERS = ("imagesTr", "imagesUn", "imagesTs")


def find_cases(images: str | Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    """Cases by name, sorted; nothing is opened.

    Args:
        images: number or name of a dataset of nnUNet_raw (its folders imagesTr, imagesUn and imagesTs, as far as there
            are); a folder of images; or one image, see `nnssl.features.images.channel_files`.
        dataset_json: of the model.

    Raises:
        UserError: there are none, one lacks a channel, or two have the same name.
    """
    text, path = str(images), Path(images)
    if text.isdecimal() or (why_not_a_name(text, "dataset") is None and not path.exists()):
        (raw,) = require_folders("nnUNet_raw")
        return _of_dataset(raw / dataset_name(text), dataset_json)
    if path.is_dir():
        of_dataset = (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()
        return _of_dataset(path, dataset_json) if of_dataset else _of_folder(path, dataset_json)
    files = channel_files(path, _number_of_channels(dataset_json), dataset_json["file_ending"])
    name = re.sub(r"(_\d{4})?\..*$", "", Path(files[0]).name)
    return [RawCase(check_name(name, "file", files[0]), files)]


def _of_dataset(folder: Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    theirs = read_dataset_json(folder)
    if "dataset" in theirs:
        raise UserError(f"{folder / 'dataset.json'} lists its files itself, which -i does not read; give a folder of "
                        f"images named like case_0000{theirs['file_ending']}")  # fmt: skip
    folders = [folder / name for name in _FOLDERS if (folder / name).is_dir() and any(os.scandir(folder / name))]
    if not folders:
        raise UserError(f"{folder} holds no images; put them into {_FOLDERS[0]} as case_0000{theirs['file_ending']}")
    as_theirs = {**dataset_json, "file_ending": theirs["file_ending"]}
    cases = [case for images in folders for case in _of_folder(images, as_theirs)]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{folder} holds the case {twice[0]} in two of {', '.join(f.name for f in folders)}; give one "
                        f"of these folders as -i")  # fmt: skip
    return sorted(cases, key=lambda case: case.name)


def _of_folder(folder: Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    ending = dataset_json["file_ending"]
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(ending))
    # nnU-Net takes the last five signs for the channel, whatever they are
    if odd := [name for name in files if not re.fullmatch(r".+_\d{4}", name[: -len(ending)])]:
        raise UserError(f"{folder / printable(odd[0])} has no channel number; name images like case_0000{ending}, or "
                        f"give one image as -i")  # fmt: skip
    return [RawCase(name, tuple(files)) for name, files in sorted(list_cases(folder, dataset_json).items())]


def _number_of_channels(dataset_json: dict[str, Any]) -> int:
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])

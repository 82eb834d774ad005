"""The files of raw images: of one, of a folder or of a dataset."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.names import check_name, why_not_a_name
from nnssl.core.system import printable
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.raw import RawCase, read_dataset_json
from nnssl.deployment.cases import list_cases

_FOLDERS = ("imagesTr", "imagesUn", "imagesTs")


def channel_files(image: str | Path, num_channels: int, file_ending: str) -> tuple[str, ...]:
    """Files of an image in nnU-Net's raw format.

    Args:
        image: the file of any channel, such as `imagesTr/case_0000.nii.gz`; one file with all channels; or the case,
            such as `imagesTr/case`.
        num_channels: that the image needs.
        file_ending: of the files of a case.

    Raises:
        UserError: there are no such files.
    """
    path = Path(image)
    match = re.fullmatch(r"(.+)_\d{4}(\..+)", path.name)
    if path.is_file():
        if num_channels == 1 or match is None:
            return (str(path),)
        files = [path.with_name(f"{match[1]}_{channel:04d}{match[2]}") for channel in range(num_channels)]
        missing = [file for file in files if not file.is_file()]
        if len(missing) == num_channels - 1:  # one file may hold all channels as a fourth axis
            return (str(path),)
    else:
        files = [Path(f"{path}_{channel:04d}{file_ending}") for channel in range(num_channels)]
        missing = [file for file in files if not file.is_file()]
        if len(missing) == num_channels:
            raise UserError(f"there is no image {path}; give a file such as case_0000{file_ending}, or the case as in "
                            f"imagesTr/case, whose channels are case_0000{file_ending} and so on")  # fmt: skip
    if missing:
        raise UserError(f"the image {image} must have {num_channels} channels, and {missing[0]} is missing")
    return tuple(map(str, files))


def raw_case(image: str | Path, num_channels: int, file_ending: str) -> RawCase:
    """The case of an image; arguments and errors as of `channel_files`."""
    files = channel_files(image, num_channels, file_ending)
    return RawCase(re.sub(r"(_\d{4})?\..*$", "", Path(files[0]).name), files)


def find_cases(images: str | Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    """Cases sorted by name; nothing is opened.

    Args:
        images: number or name of a dataset of nnUNet_raw (those of its folders imagesTr, imagesUn and imagesTs that
            exist); a folder of images; or one image, see `channel_files`.
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
    channels = len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])
    case = raw_case(path, channels, dataset_json["file_ending"])
    check_name(case.name, "file", case.images[0])
    return [case]


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
    if twice := sorted(name for name, count in Counter(case.name for case in cases).items() if count > 1):
        raise UserError(f"{folder} holds the case {twice[0]} in two of {', '.join(f.name for f in folders)}; give one "
                        f"of these folders as -i")  # fmt: skip
    return sorted(cases, key=lambda case: case.name)


def _of_folder(folder: Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    ending = dataset_json["file_ending"]
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(ending))
    # nnU-Net takes the last five characters for the channel, whatever they are
    if odd := [name for name in files if not re.fullmatch(r".+_\d{4}", name[: -len(ending)])]:
        raise UserError(f"{folder / printable(odd[0])} has no channel number; name images like case_0000{ending}, or "
                        f"give one image as -i")  # fmt: skip
    return [RawCase(name, tuple(files)) for name, files in sorted(list_cases(folder, dataset_json).items())]

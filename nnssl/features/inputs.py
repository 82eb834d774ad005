"""Which raw images a command reads, and whether they suit the pretraining (`nnssl.data.guard`)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.names import check_name, why_not_a_name
from nnssl.core.system import printable
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.guard import Images, names_of_channels, warn_of_images
from nnssl.data.raw import RawCase, read_dataset_json
from nnssl.deployment.cases import list_cases
from nnssl.features.images import PreparedImage, raw_case

_FOLDERS = ("imagesTr", "imagesUn", "imagesTs")


def find_cases(images: str | Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    """Cases sorted by name; nothing is opened.

    Args:
        images: number or name of a dataset of nnUNet_raw (those of its folders imagesTr, imagesUn and imagesTs that
            exist); a folder of images; or one image, see `nnssl.features.images.channel_files`.
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


class Source(Protocol):
    """A pretrained network with the plans that raw images are prepared by."""

    @property
    def plans(self) -> dict[str, Any]:
        """nnU-Net's."""

    @property
    def configuration(self) -> str:
        """Name in the plans."""

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Of the pretraining's first dataset."""

    @property
    def orientation(self) -> str | None:
        """The commonest of its volumes."""


class ImageGuard:
    """Compares raw images with a pretraining: their modality before any is read, the rest in `report`.

    It warns once, for all images together.

    Args:
        source: the pretraining.
        images: existing files of each image, one for each channel or one with all channels.
        allow: accept other intensities.

    Raises:
        UserError: `channel_names` of a dataset.json, in the folder of an image or in the one above it, names another
            modality.
    """

    def __init__(self, source: Source, images: Iterable[Sequence[str]], allow: bool) -> None:
        self._given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
        self._orientations: dict[str, str | None] = {}
        self._voxels: dict[str, Sequence[float]] = {}
        count = len(names_of_channels(source.dataset_json))
        known: dict[Path, Mapping[str, Any]] = {}
        folders: dict[tuple[str, ...], dict[Path, None]] = {}  # by the channels that their images have
        for files in images:
            folder = Path(files[0]).absolute().parent
            if folder not in known:
                known[folder] = _dataset_json_of(folder)
            folders.setdefault(_channels(files, known[folder], count), {})[folder] = None
        for channels, where in folders.items():
            warn_of_images(self._given, Images(f"the images in {', '.join(map(str, where))}", channels), allow)

    def saw(self, image: PreparedImage) -> PreparedImage:
        """Note the orientation and voxels of an image and return it; the same image may come twice."""
        name, voxels = image.name, tuple(image.geometry.file_spacing.round(4).tolist())
        while name in self._voxels and (self._orientations[name], self._voxels[name]) != (image.orientation, voxels):
            name += " (another)"  # of the same name, in another folder
        self._orientations[name], self._voxels[name] = image.orientation, voxels
        return image

    def report(self) -> None:
        """Warn of orientations and voxels that differ from the pretraining's.

        Where its orientation is unknown, the first image's counts.
        """
        given = self._given
        first = next((name for name, letters in self._orientations.items() if letters is not None), None)
        if given.orientation is None and first is not None:
            warn_of_images(Images(first, orientation=self._orientations[first]),
                           Images("", orientations=self._orientations))  # fmt: skip
        warn_of_images(given, Images("these images", orientations=self._orientations, voxels=self._voxels))


def _dataset_json_of(folder: Path) -> Mapping[str, Any]:
    """The dataset.json that names the channels of a folder's images: in it, or above it as in a raw dataset."""
    for file in (folder / "dataset.json", folder.parent / "dataset.json"):
        if not file.is_file():
            continue
        try:
            content = read_json(file)
        except UserError:  # no reason to refuse an image: its modality counts as unknown
            continue
        if isinstance(content, dict) and names_of_channels(content):
            return content
    return {}


def _channels(files: Sequence[str], dataset_json: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of an image's channels; where the dataset has more than are read, the one of the file's number."""
    names = names_of_channels(dataset_json)
    if len(names) == count:
        return names
    number = re.search(r"_(\d{4})\.", Path(files[0]).name)
    return names[int(number[1]) :][:1] if count == 1 and number else ()

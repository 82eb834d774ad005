"""The guard of `nnssl.data.guard` for raw images: their modality before any is read, the rest when all have been."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.data.guard import Images, names_of_channels, warn_of_images
from nnssl.features.images import PreparedImage


class Source(Protocol):
    """What raw images are prepared for: a pretrained network with its plans."""

    @property
    def plans(self) -> dict[str, Any]:
        """nnU-Net's."""

    @property
    def configuration(self) -> str:
        """Of the plans."""

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Of the pretraining's first dataset."""

    @property
    def orientation(self) -> str | None:
        """Commonest one of its volumes."""


class ImageGuard:
    """Compares raw images with a pretraining. It warns once, however many images there are.

    Args:
        source: the pretraining.
        images: files of each image, one a channel or one with all channels; they have to exist.
        allow: whether other intensities are wanted.

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
        """Keep orientation and voxels of an image; returns it. The same one may come twice."""
        name, voxels = image.name, tuple(image.geometry.file_spacing.round(4).tolist())
        while name in self._voxels and (self._orientations[name], self._voxels[name]) != (image.orientation, voxels):
            name += " (another)"  # of the same name, in another folder
        self._orientations[name], self._voxels[name] = image.orientation, voxels
        return image

    def report(self) -> None:
        """Warn of the orientations and voxels that differ from the pretraining's.

        Where its orientation is not known, they are compared with the first image.
        """
        given = self._given
        first = next((name for name, letters in self._orientations.items() if letters is not None), None)
        if given.orientation is None and first is not None:
            warn_of_images(Images(first, orientation=self._orientations[first]),
                           Images("", orientations=self._orientations))  # fmt: skip
        warn_of_images(given, Images("these images", orientations=self._orientations, voxels=self._voxels))


def _dataset_json_of(folder: Path) -> Mapping[str, Any]:
    """The dataset.json that says what the images of a folder are: in it, or above it, as in a raw dataset."""
    for file in (folder / "dataset.json", folder.parent / "dataset.json"):
        if not file.is_file():
            continue
        try:
            content = read_json(file)
        except UserError:  # no reason to refuse an image: what it shows counts as unknown
            continue
        if isinstance(content, dict) and names_of_channels(content):
            return content
    return {}


def _channels(files: Sequence[str], dataset_json: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of an image's channels; of a dataset with more channels than are read, that of the file's number."""
    names = names_of_channels(dataset_json)
    if len(names) == count:
        return names
    number = re.search(r"_(\d{4})\.", Path(files[0]).name)
    return names[int(number[1]) :][:1] if count == 1 and number else ()

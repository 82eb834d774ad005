"""Raw images: found, compared with a pretraining, and preprocessed by nnU-Net as in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import BadCase, UserError
from nnssl.core.files import read_json
from nnssl.data.check_case import body_mask_ct, load_case
from nnssl.data.guard import Images, names_of_channels, warn_of_images
from nnssl.data.pool import quietly
from nnssl.data.preprocessing import check_size_at, mask_onto_grid
from nnssl.data.raw import RawCase, first_ct_channel
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.features.cases import raw_case
from nnssl.features.geometry import ImageGeometry, image_geometry
from nnssl.networks.build import resolve_configuration

_GREY = (1.0, 99.5)  # percentiles that are black and white
_AIR = 0.1  # of the range of an image without Hounsfield units
_TABLE_MM = 10.0  # parts of a CT that are nowhere twice as thick are no body: a scanner's table, its cover, cables
_CELL_MM = 4.0  # of the grid on which they are looked for
_PART = 0.1  # of the largest part's size: legs are as large as each other, and a table's core is smaller


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


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image.

    Args:
        name: of the case, for titles and messages.
        values: (C, Z, Y, X) float32, the plans' normalised values.
        geometry: of its voxels.
        orientation: directions of the axes of the array that was read, such as LPS; None where unknown.
        body: (Z, Y, X) bool, in CT what air from outside does not reach, otherwise where the raw image is not zero;
            None unless asked for.
        file: of its first channel.
    """

    name: str
    values: np.ndarray
    geometry: ImageGeometry
    orientation: str | None = None
    body: NDArray[np.bool_] | None = None
    file: str = ""


def grey_window(grey: NDArray[np.float32]) -> tuple[float, float]:
    """The values of a volume (Z, Y, X) that are shown black and white."""
    black, white = np.percentile(grey[:: max(1, len(grey) // 32)], _GREY)
    return float(black), float(white)


def prepare_image(image: str | Path, source: Source, with_body: bool = False) -> PreparedImage:
    """Read an image and preprocess it with nnU-Net's own code.

    Args:
        image: see `nnssl.features.cases.channel_files`.
        source: the pretraining with its plans.
        with_body: make the body mask too.

    Raises:
        UserError: the image is missing or cannot be used.
    """
    channels = len(resolve_configuration(source.plans, source.configuration)["normalization_schemes"])
    try:
        return prepare_raw_case(raw_case(image, channels, source.dataset_json["file_ending"]), source, with_body)
    except BadCase as bad:
        raise UserError(f"the image {image} cannot be used: {bad}") from bad


def prepare_raw_case(case: RawCase, source: Source, with_body: bool = False) -> PreparedImage:
    """As `prepare_image`, for known files.

    Raises:
        BadCase: the image cannot be used.
        UserError: the plans name what nnU-Net must not call.
    """
    try:
        return _prepare(case, source, with_body)
    except MemoryError as error:  # images come one at a time: this one is too large
        raise BadCase(f"not enough memory to prepare it ({error}); use a machine with more") from error


def _prepare(case: RawCase, source: Source, with_body: bool) -> PreparedImage:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(source.plans)
    resolved = manager.get_configuration(source.configuration)
    refuse_untrusted_names(source.plans, resolved.configuration)
    ct_channel = first_ct_channel(resolved.normalization_schemes)
    loaded = load_case(case, manager.image_reader_writer_class, len(resolved.normalization_schemes), ct_channel)
    check_size_at(loaded, manager.transpose_forward, resolved.spacing)
    body = None
    if with_body and ct_channel is not None:  # before nnU-Net clips the values
        body = body_mask_ct(loaded.image[ct_channel].transpose(manager.transpose_forward))
    with quietly():
        values, seg, properties = resolved.preprocessor_class(verbose=False).run_case_npy(
            loaded.image, None, loaded.properties, manager, resolved, source.dataset_json
        )
        if body is not None:
            body = mask_onto_grid(body, values.shape[1:], properties, manager.transpose_forward, resolved)
        elif with_body:
            body = seg[0] >= 0  # nnU-Net writes -1 outside the nonzero mask
    geometry = image_geometry(properties, manager.transpose_forward, values.shape[1:], case.images[0])
    values = values.astype(np.float32, copy=False)
    return PreparedImage(case.name, values, geometry, loaded.orientation, body, case.images[0])


class ImageReader:
    """Prepares raw images for a pretraining and compares them with it: their modality before any is read.

    The rest is compared in `report`, which warns once, for all images together.

    Args:
        source: the pretraining.
        images: existing files of each image, one for each channel or one with all channels.
        allow: accept other intensities.

    Raises:
        UserError: `channel_names` of a dataset.json, in the folder of an image or in the one above it, names another
            modality.
    """

    def __init__(self, source: Source, images: Iterable[Sequence[str]], allow: bool) -> None:
        self.source = source
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

    def prepare(self, images: Iterable[str | Path], with_body: bool = True) -> Iterator[PreparedImage]:
        """Prepare images for a figure, one at a time, each with the mask of its body; after the last comes the report.

        The body is what air from outside does not reach, in CT without the scanner's table. In images other than CT,
        air is what is darker than a tenth of the range of the first channel.

        Raises:
            UserError: an image is missing, cannot be used, or shows no body.
        """
        schemes = resolve_configuration(self.source.plans, self.source.configuration)["normalization_schemes"]
        is_ct = first_ct_channel(schemes) is not None
        for image in images:
            prepared = self.saw(prepare_image(image, self.source, with_body))
            if prepared.body is not None:
                dark, bright = (0.0, 0.0) if is_ct else grey_window(prepared.values[0])
                body = (
                    without_table(prepared.body, prepared.geometry.spacing)
                    if is_ct
                    else (prepared.body & body_mask_ct(prepared.values[0], dark + _AIR * (bright - dark)))
                )
                if not body.any():
                    raise UserError(f"{image} shows no body, only air; give another image")
                prepared = replace(prepared, body=body)
            yield prepared
        self.report()

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


def without_table(body: NDArray[np.bool_], spacing: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The thick parts of a CT's body mask, by an opening on a coarse grid; the whole mask where no part is thick.

    Args:
        body: (Z, Y, X).
        spacing: (3,) mm a voxel.
    """
    from scipy import ndimage

    steps = np.maximum(np.floor(_CELL_MM / spacing).astype(int), 1)
    coarse, cell_mm = body[tuple(slice(None, None, step) for step in steps)], steps * spacing
    parts, count = ndimage.label(ndimage.distance_transform_edt(coarse, sampling=cell_mm) > _TABLE_MM)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    if not count or coarse.all():
        return body
    core = np.isin(parts, np.flatnonzero(sizes >= _PART * sizes.max()) + 1)
    near = ndimage.distance_transform_edt(~core, sampling=cell_mm) <= _TABLE_MM + float(cell_mm.max())
    for axis, step in enumerate(steps):
        near = near.repeat(step, axis).take(np.arange(body.shape[axis]), axis)
    return np.asarray(body & near)


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

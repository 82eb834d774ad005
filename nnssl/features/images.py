"""Raw images, preprocessed by nnU-Net as in an encoder's pretraining."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnssl.core.errors import BadCase, UserError
from nnssl.data.check_case import body_mask_ct, load_case
from nnssl.data.pool import quietly
from nnssl.data.preprocessing import check_size_at, mask_onto_grid
from nnssl.data.raw import RawCase, first_ct_channel
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.networks.build import resolve_configuration

Floats = NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of affines, and back
_ROUNDING = 1e-6
_GREY = (1.0, 99.5)  # percentiles that are black and white


@dataclass(frozen=True)
class ImageGeometry:
    """Where the voxels of a preprocessed image are in the world.

    World coordinates are (x, y, z) in mm, LPS as in DICOM and SimpleITK: x grows to the left, y to the back, z upwards.
    Voxels of the file are (x, y, z), as viewers show them; voxels of the grid are (z, y, x), after nnU-Net's transpose,
    crop and resampling. Integers are the voxels' centres; points may be anywhere.

    Args:
        array_affine: (4, 4) from voxels (z, y, x) of the array of nnU-Net's reader to the world.
        file_affine: (4, 4) from voxels (x, y, z) of the file to the world; readers may turn an image.
        axes: nnU-Net's transpose_forward: axis i of the grid is axis axes[i] of the array.
        crop_start: (3,) first voxel of nnU-Net's crop, in the grid's order of axes.
        crop_size: (3,) voxels of the crop.
        size: (3,) voxels of the grid.
    """

    array_affine: Floats
    file_affine: Floats
    axes: tuple[int, ...]
    crop_start: Floats
    crop_size: Floats
    size: Floats

    @property
    def affine(self) -> Floats:
        """(4, 4) from voxels (z, y, x) of the grid to the world.

        nnU-Net's resampling keeps the outer faces of the crop in place: voxel g of n is at (g + 0.5) * old / n - 0.5.
        """
        scale = self.crop_size / self.size
        resampled = np.diag([*scale, 1.0])
        resampled[:3, 3] = self.crop_start + 0.5 * scale - 0.5
        transposed = np.zeros((4, 4))
        transposed[list(self.axes), range(3)] = transposed[3, 3] = 1.0
        whole: Floats = self.array_affine @ transposed @ resampled
        return whole

    @property
    def spacing(self) -> Floats:
        """(3,) mm a voxel of the grid, which differs from the plans' by the rounding of the size."""
        lengths: Floats = np.linalg.norm(self.affine[:3, :3], axis=0)
        return lengths

    @property
    def file_spacing(self) -> Floats:
        """(3,) mm a voxel of the file, along the axes of the grid."""
        lengths: Floats = np.linalg.norm(self.array_affine[:3, :3], axis=0)[list(self.axes)]
        return lengths

    def grid_to_world(self, points: ArrayLike) -> Floats:
        """(..., 3) voxels of the grid -> (..., 3) mm."""
        return _apply(self.affine, points)

    def world_to_grid(self, points: ArrayLike) -> Floats:
        """(..., 3) mm -> (..., 3) voxels of the grid."""
        return _apply(np.linalg.inv(self.affine), points)

    def file_to_world(self, points: ArrayLike) -> Floats:
        """(..., 3) voxels of the file -> (..., 3) mm."""
        return _apply(self.file_affine, points)

    def world_to_file(self, points: ArrayLike) -> Floats:
        """(..., 3) mm -> (..., 3) voxels of the file."""
        return _apply(np.linalg.inv(self.file_affine), points)

    def inside(self, points: ArrayLike) -> NDArray[np.bool_]:
        """(...,) whether (..., 3) voxels of the grid are in the image, outer faces included."""
        voxels = np.asarray(points)
        within = (voxels >= -0.5 - _ROUNDING) & (voxels <= self.size - 0.5 + _ROUNDING)
        return np.asarray(within.all(-1))


def image_geometry(properties: Mapping[str, Any], axes: Sequence[int], size: Sequence[int], file: str) -> ImageGeometry:
    """Geometry of an image preprocessed by nnU-Net's `DefaultPreprocessor`.

    Args:
        properties: of the image, from its reader and from the preprocessor.
        axes: the plans' transpose_forward.
        size: (Z, Y, X) of the preprocessed array.
        file: the image, or its first channel; read where the reader turned it and does not say from what.
    """
    array, file_affine = _affines(properties, file)
    box = np.asarray(properties["bbox_used_for_cropping"], dtype=np.float64)
    return ImageGeometry(
        array, file_affine, tuple(axes), box[:, 0], box[:, 1] - box[:, 0], np.asarray(size, dtype=np.float64)
    )


def _affines(properties: Mapping[str, Any], file: str) -> tuple[Floats, Floats]:
    """Of the array (z, y, x) and of the file (x, y, z)."""
    turned = np.eye(4)[[2, 1, 0, 3]]  # from (z, y, x) to (x, y, z)
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        affine = _itk_affine(stuff["origin"], stuff["direction"], stuff["spacing"])
        return affine @ turned, _affine_of_header(file) if "original_orientation" in stuff else affine
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        original = LPS_TO_RAS @ np.asarray(stuff["original_affine"], dtype=np.float64)
        array = LPS_TO_RAS @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
        return array @ turned, original
    affine = np.diag([*list(properties["spacing"])[::-1], 1.0])  # the format knows no more
    return affine @ turned, affine


def _itk_affine(origin: Sequence[float], direction: Sequence[float], spacing: Sequence[float]) -> Floats:
    """(4, 4) from voxels (x, y, z); a fourth axis, the channels', is left out."""
    dimensions = len(spacing)
    cosines = np.asarray(direction, dtype=np.float64).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = cosines * np.asarray(spacing, dtype=np.float64)[:3]
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)[:3]
    return affine


def _affine_of_header(file: str) -> Floats:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return _itk_affine(reader.GetOrigin(), reader.GetDirection(), reader.GetSpacing())


def _apply(affine: NDArray[Any], points: ArrayLike) -> Floats:
    moved: Floats = np.asarray(points, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return moved


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
    """

    name: str
    values: np.ndarray
    geometry: ImageGeometry
    orientation: str | None = None
    body: np.ndarray | None = None


def grey_window(grey: NDArray[np.float32]) -> tuple[float, float]:
    """The values of a volume (Z, Y, X) that are shown black and white."""
    black, white = np.percentile(grey[:: max(1, len(grey) // 32)], _GREY)
    return float(black), float(white)


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
        raise UserError(f"the image {image} has to have {num_channels} channels, and {missing[0]} is missing")
    return tuple(map(str, files))


def raw_case(image: str | Path, num_channels: int, file_ending: str) -> RawCase:
    """The case of an image; arguments and errors as of `channel_files`."""
    files = channel_files(image, num_channels, file_ending)
    return RawCase(re.sub(r"(_\d{4})?\..*$", "", Path(files[0]).name), files)


def prepare_image(
    image: str | Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool = False
) -> PreparedImage:
    """Read an image and preprocess it with nnU-Net's own code.

    Args:
        image: see `channel_files`.
        plans: nnU-Net's.
        configuration: of the plans.
        dataset_json: of the dataset that the plans are for.
        with_body: make the body mask too.

    Raises:
        UserError: the image is missing or cannot be used.
    """
    channels = len(resolve_configuration(plans, configuration)["normalization_schemes"])
    case = raw_case(image, channels, dataset_json["file_ending"])
    try:
        return prepare_raw_case(case, plans, configuration, dataset_json, with_body)
    except BadCase as bad:
        raise UserError(f"the image {image} cannot be used: {bad}") from bad


def prepare_raw_case(
    case: RawCase, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool = False
) -> PreparedImage:
    """As `prepare_image`, for known files.

    Raises:
        BadCase: the image cannot be used.
        UserError: the plans name what nnU-Net must not call.
    """
    try:
        return _prepare(case, plans, configuration, dataset_json, with_body)
    except MemoryError as error:  # images come one at a time: this one is too large
        raise BadCase(f"not enough memory to prepare it ({error}); use a machine with more") from error


def _prepare(
    case: RawCase, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], with_body: bool
) -> PreparedImage:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration)
    refuse_untrusted_names(plans, resolved.configuration)
    schemes = resolved.normalization_schemes
    ct_channel = first_ct_channel(schemes)
    loaded = load_case(case, manager.image_reader_writer_class, len(schemes), ct_channel)
    check_size_at(loaded, manager.transpose_forward, resolved.spacing)
    body = None
    if with_body and ct_channel is not None:  # before nnU-Net clips the values
        body = body_mask_ct(loaded.image[ct_channel].transpose(manager.transpose_forward))
    with quietly():
        values, seg, properties = resolved.preprocessor_class(verbose=False).run_case_npy(
            loaded.image, None, loaded.properties, manager, resolved, dataset_json
        )
        if body is not None:
            body = mask_onto_grid(body, values.shape[1:], properties, manager.transpose_forward, resolved)
        elif with_body:
            body = seg[0] >= 0  # nnU-Net writes -1 outside the nonzero mask
    geometry = image_geometry(properties, manager.transpose_forward, values.shape[1:], case.images[0])
    values = values.astype(np.float32, copy=False)
    return PreparedImage(case.name, values, geometry, loaded.orientation, body)

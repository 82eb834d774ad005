"""Reading a raw volume, and the reasons for which one is left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnssl.data.body_mask import AIR_HU
from nnssl.data.quiet import quietly
from nnssl.data.raw import RawCase

SMALLEST = 4  # voxels along an axis
_NON_FINITE = "non-finite values (NaN or infinity)"


class BadCase(Exception):
    """A volume cannot be used; the message is the short reason."""


@dataclass(frozen=True)
class LoadedCase:
    """A healthy case as nnU-Net's reader gives it.

    Args:
        image: (C, Z, Y, X) float32, in the file's axes.
        label: (1, Z, Y, X), or None.
        properties: the reader's, with `spacing` in mm along the same axes.
        orientation: where the axes point, as in LPS (file order: x, y, z); None where the format does not know.
    """

    image: np.ndarray
    label: np.ndarray | None
    properties: dict[str, Any]
    orientation: str | None


def load_case(case: RawCase, reader: Callable[[], Any], num_channels: int, ct_channel: int | None) -> LoadedCase:
    """Read a case with nnU-Net's reader and check it.

    Raises:
        BadCase: with the reason.
    """
    image, properties = _read(reader().read_images, case.images, "image")
    check_image(image, properties["spacing"], num_channels, ct_channel)
    if "sitk_stuff" in properties and any(map(_hides_non_finite, case.images)):
        raise BadCase(_NON_FINITE)
    label = None
    if case.label is not None:
        label, _ = _read(reader().read_seg, case.label, "label")
        check_label(label, image)
    return LoadedCase(image, label, properties, orientation(properties))


def check_image(image: np.ndarray, spacing: Any, num_channels: int, ct_channel: int | None) -> None:
    """Raise BadCase unless `image` (C, Z, Y, X) is a volume to learn from."""
    shape = "x".join(map(str, image.shape[1:]))
    if image.size == 0:
        raise BadCase("empty: no voxels")
    if image.shape[0] != num_channels:
        raise BadCase(f"wrong number of channels: {image.shape[0]}, dataset.json names {num_channels}")
    if 1 in image.shape[1:]:
        raise BadCase(f"2-D: {shape} voxels")
    if min(image.shape[1:]) < SMALLEST:
        raise BadCase(f"too small: {shape} voxels, at least {SMALLEST} are needed on every axis")
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise BadCase(f"spacing {[float(s) for s in spacing]} mm is not positive")
    lowest, highest = [c.min() for c in image], [c.max() for c in image]  # NaN and infinity show in one of them
    if not np.isfinite([lowest, highest]).all():
        raise BadCase(_NON_FINITE)
    # Any voxel that is not air is never flooded, so that no mask has to be computed to see whether it would be empty.
    if ct_channel is not None and highest[ct_channel] < AIR_HU:
        raise BadCase(f"all air: no voxel reaches {AIR_HU:g} HU")
    if lowest == highest:
        raise BadCase(f"empty: every voxel is {lowest[0]:g}")


def check_label(label: np.ndarray, image: np.ndarray) -> None:
    """Raise BadCase unless `label` (1, Z, Y, X) belongs to `image` (C, Z, Y, X)."""
    if label.shape[1:] != image.shape[1:] or label.shape[0] != 1:
        found, wanted = ("x".join(map(str, a.shape[1:])) for a in (label, image))
        raise BadCase(f"label of another shape: {found} voxels, the image has {wanted}")
    if not np.isfinite(label).all():
        raise BadCase(f"{_NON_FINITE} in the label")


def orientation(properties: dict[str, Any]) -> str | None:
    """Letters of the direction that the file's x, y and z axis point to, such as LPS; None where it is unknown."""
    if "sitk_stuff" in properties:
        import SimpleITK

        direction = np.asarray(properties["sitk_stuff"]["direction"])
        size = math.isqrt(direction.size)
        cosines = direction.reshape(size, size)[:3, :3]  # a 4-D image has a fourth axis
        filter_ = SimpleITK.DICOMOrientImageFilter
        return str(filter_.GetOrientationFromDirectionCosines(cosines.ravel().tolist()))
    if "nibabel_stuff" in properties:
        import nibabel

        stuff = properties["nibabel_stuff"]
        return "".join(nibabel.aff2axcodes(stuff.get("reoriented_affine", stuff["original_affine"])))
    return None


def _hides_non_finite(file: str) -> bool:
    """Whether a NIfTI file holds NaN or infinity, which ITK turns into zeros while reading; integers cannot."""
    if not file.lower().endswith((".nii", ".nii.gz")):
        return False
    import nibabel

    image: Any = nibabel.load(file)
    if image.get_data_dtype().kind != "f":
        return False
    stored = image.dataobj.get_unscaled()
    return not np.isfinite([stored.min(), stored.max()]).all()


def _read(read: Callable[[Any], tuple[np.ndarray, dict[str, Any]]], files: Any, what: str) -> Any:
    with quietly() as said:
        try:
            return read(files)
        except MemoryError:
            raise
        except Exception as error:  # every format library raises its own; all of them mean that the file is no good
            raise BadCase(_why_unreadable(error, said.getvalue(), what)) from error


def _why_unreadable(error: Exception, said: str, what: str) -> str:
    """One line. nnU-Net's readers print why channels do not fit together and raise without a word."""
    for sign, reason in (("the same shape", "shapes"), ("the same spacing", "spacings")):
        if f"Not all input images have {sign}" in said:
            return f"channels of different {reason}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"unreadable {what}: {(lines or [type(error).__name__])[-1][:200]}"

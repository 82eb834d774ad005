"""Reading a raw volume: the reasons for which one is left out, and which of its voxels are body.

Body is everything that outside air does not reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase
from nnssl.data.check_files import NON_FINITE, check_files, check_range
from nnssl.data.image_headers import Header
from nnssl.data.pool import itk_is_quiet, quietly
from nnssl.data.raw import RawCase

AIR_HU = -500.0  # below it a voxel is air (methods.md 1.1)
SMALLEST = 4  # voxels along an axis
_SHOWN = 10  # label values that a reason names


@dataclass(frozen=True)
class LoadedCase:
    """A healthy case as nnU-Net's reader gives it.

    Args:
        image: (C, Z, Y, X) float32, in the file's axes.
        label: (1, Z, Y, X), or None.
        properties: the reader's, with `spacing` in mm along the same axes.
        orientation: where the axes point, as in LPS (file order: x, y, z); None where the format does not know.
        warnings: what does not rule the case out but should be looked at, such as a label with another origin.
    """

    image: np.ndarray
    label: np.ndarray | None
    properties: dict[str, Any]
    orientation: str | None
    warnings: tuple[str, ...] = ()


def load_case(
    case: RawCase,
    reader: Callable[[], Any],
    num_channels: int,
    ct_channel: int | None,
    label_values: Collection[int] | None = None,
) -> LoadedCase:
    """Check the files of a case, read it with nnU-Net's reader, and check what was read.

    Args:
        case: its files.
        reader: nnU-Net's class.
        num_channels: that it must have.
        ct_channel: first channel in Hounsfield units, None if there is none.
        label_values: that a label map may hold; None to let all pass.

    Raises:
        BadCase: with the reason.
    """
    checked = check_files(case.images, reader, case.label)
    image, properties = _read(reader().read_images, case.images, "image")
    check_image(image, properties["spacing"], num_channels, ct_channel)
    label = None
    if case.label is not None:
        label, of_label = _read(reader().read_seg, case.label, "label")
        check_label(label, image, label_values)
        _check_label_spacing(of_label["spacing"], properties["spacing"])
    return LoadedCase(image, label, properties, orientation(properties), checked.warnings)


def read_label(file: str, reader: Callable[[], Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Check a label map and read it: (1, Z, Y, X), and the properties of nnU-Net's reader.

    Raises:
        BadCase: with the reason; what the values are is not judged.
    """
    check_files((), reader, file)
    label, properties = _read(reader().read_seg, file, "label")
    return label, properties


def check_images(files: Sequence[str], reader: Callable[[], Any], label: str | None = None) -> list[Header]:
    """Check the images of a case that other code will read, and return the headers of known formats.

    Images of unknown formats are read once, since nothing else tells whether they can be.

    Args:
        files: one a channel.
        reader: nnU-Net's class.
        label: a label map that will be read with them.

    Raises:
        BadCase: with the reason.
    """
    checked = check_files(files, reader, label)
    if not checked.complete:
        _read(reader().read_images, files, "image")
    return checked.headers


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
    check_range(float(np.min(lowest)), float(np.max(highest)))
    # A voxel that is not air is never flooded: no mask is needed to tell whether it would be empty.
    if ct_channel is not None and highest[ct_channel] < AIR_HU:
        raise BadCase(f"all air: no voxel reaches {AIR_HU:g} HU")
    if lowest == highest:
        raise BadCase(f"empty: every voxel is {lowest[0]:g}")


def check_label(label: np.ndarray, image: np.ndarray, values: Collection[int] | None = None) -> None:
    """Raise BadCase unless `label` (1, Z, Y, X) belongs to `image` (C, Z, Y, X) and holds only `values`."""
    if label.shape[1:] != image.shape[1:] or label.shape[0] != 1:
        found, wanted = ("x".join(map(str, a.shape[1:])) for a in (label, image))
        raise BadCase(f"label of another shape: {found} voxels, the image has {wanted}")
    if values is not None:
        check_label_values(label, values)
    elif not np.isfinite([label.min(), label.max()]).all():
        raise BadCase(f"{NON_FINITE} in the label")


def check_label_values(label: np.ndarray, values: Collection[int]) -> None:
    """Raise BadCase unless a label map holds only the whole numbers `values`."""
    if not np.isfinite([label.min(), label.max()]).all():
        raise BadCase(f"{NON_FINITE} in the label")
    if unknown := other_values(label, values):
        listed = ", ".join(f"{value:.9g}" for value in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        raise BadCase(f"label with the values {listed}, which dataset.json does not name; mend the label map, or add "
                      f"them to its labels")  # fmt: skip


def other_values(label: np.ndarray, values: Collection[int]) -> list[float]:
    """Values in a label map, finite numbers, other than the whole numbers from 0 on that it may hold; sorted."""
    allowed = np.zeros(max(values) + 2, dtype=bool)
    allowed[list(values)] = True
    # A table, since finding the unique values of a large volume takes much longer; its last entry is False.
    inside = np.clip(label, -1, len(allowed) - 1).astype(np.int32)
    wrong = ~allowed[inside] | (inside != label)
    return [float(value) for value in np.unique(label[wrong])]


def _check_label_spacing(label: Sequence[float], image: Sequence[float]) -> None:
    """Raise BadCase for another spacing, by the tolerance of nnU-Net's integrity check."""
    if not np.allclose(label, image):
        found, wanted = (" x ".join(f"{float(s):.4g}" for s in spacing) for spacing in (label, image))
        raise BadCase(f"label of another spacing: {found} mm, the image has {wanted}; resample it, or mend its header")


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


def _read(read: Callable[[Any], tuple[np.ndarray, dict[str, Any]]], files: Any, what: str) -> Any:
    with quietly() as said, itk_is_quiet():
        try:
            return read(files)
        except MemoryError:
            raise
        except Exception as error:  # each format library raises its own errors
            raise BadCase(_why_unreadable(error, said.getvalue(), what)) from error


def _why_unreadable(error: Exception, said: str, what: str) -> str:
    """One line. nnU-Net's readers print why channels do not fit together and raise without a word."""
    for sign, reason in (("the same shape", "shapes"), ("the same spacing", "spacings")):
        if f"Not all input images have {sign}" in said:
            return f"channels of different {reason}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"unreadable {what}: {(lines or [type(error).__name__])[-1][:200]}"


def body_mask_ct(hu: np.ndarray, threshold: float = AIR_HU) -> np.ndarray:
    """Body of a CT (methods.md 1.1): voxels that a flood of air from outside does not reach.

    Air is `hu < threshold`. One voxel of air is put around the two in-plane axes, not in z, and flooded from the corner
    through all 26 neighbours. Enclosed gas (lung, bowel) stays body unless it meets the outside in the first or last
    slice.

    Args:
        hu: (Z, Y, X), any numeric type.
        threshold: in the unit of `hu`.

    Returns:
        (Z, Y, X) bool.
    """
    from scipy import ndimage

    air = np.pad(hu < threshold, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    regions, _ = ndimage.label(air, structure=np.ones((3, 3, 3), dtype=bool))
    return np.asarray(regions[:, 1:-1, 1:-1] != regions[0, 0, 0])


def body_mask_normalized_ct(values: np.ndarray, properties: dict[str, float]) -> np.ndarray:
    """Body of a CT channel that nnU-Net has clipped, normalised and resampled already.

    HU are recovered with the mean and deviation of the plans, up to the clipping. If the clip window starts below
    -500 HU, this is `body_mask_ct`, up to the resampling. A narrower window (as planned from labels of soft tissue, say
    -50 to 250 HU) turns everything under its lower bound into one value. Air is then everything up to 5 % of the window
    above that bound (ringing of the cubic resampling stays below it), and skin and fat under the bound that touch
    outside air are not body.

    Args:
        values: (Z, Y, X) normalised values.
        properties: of the channel in the plans: mean, std, percentile_00_5, percentile_99_5, in HU.

    Returns:
        (Z, Y, X) bool.
    """
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    threshold = max(AIR_HU, low + 0.05 * (high - low))
    return body_mask_ct(values, (threshold - properties["mean"]) / max(properties["std"], 1e-8))

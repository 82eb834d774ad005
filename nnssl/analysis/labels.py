"""Label files that belong to raw images: names, values at points, and centres of mass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnssl.core.errors import BadCase, UserError
from nnssl.data.check_files import check_files
from nnssl.data.pool import itk_is_quiet
from nnssl.data.raw import read_dataset_json
from nnssl.features.images import ImageGeometry

Floats = NDArray[np.float64]
WHOLE, LEFT, RIGHT = "", "left", "right"  # of the patient
_PART = 0.25  # of a label's voxels: what is connected and smaller is not one of two halves


@dataclass(frozen=True)
class LabelVolume:
    """A label file.

    Args:
        values: (x, y, z) integers of the file's voxels.
        geometry: of the image that it belongs to.
    """

    values: NDArray[np.integer[Any]]
    geometry: ImageGeometry

    def at(self, points: Floats) -> NDArray[np.int64]:
        """(N,) values at voxels (N, 3) of the image's grid; 0 outside the file."""
        voxels = np.floor(self.geometry.world_to_file(self.geometry.grid_to_world(points)) + 0.5).astype(int)
        inside = ((voxels >= 0) & (voxels < self.values.shape)).all(1)
        found = np.zeros(len(voxels), dtype=np.int64)
        found[inside] = self.values[tuple(voxels[inside].T)]
        return found

    def centres(self, value: int) -> dict[str, Floats]:
        """Centres of mass of a label, (3,) mm of the world by name; nothing where the label does not occur.

        `WHOLE` is that of the label. Of a pair, such as the hippocampi, it lies between both, where there may be
        anything; therefore `LEFT` and `RIGHT` are those of its halves: the two connected parts that hold a quarter of
        it each, if there are two, and if they lie farther apart along the world's x than along y and z.
        """
        mask = self.values == value
        boxes = ndimage.find_objects(mask.astype(np.uint8))
        if not boxes:
            return {}
        box = boxes[0]
        found = {WHOLE: self._centre(mask[box], box)}
        parts, count = ndimage.label(mask[box])
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        large = np.flatnonzero(sizes > _PART * sizes.sum()) + 1
        if len(large) == 2:
            right, left = sorted((self._centre(parts == part, box) for part in large), key=lambda at: float(at[0]))
            if np.abs(left - right).argmax() == 0:  # the patient's left has the larger x
                found |= {LEFT: left, RIGHT: right}
        return found

    def _centre(self, mask: NDArray[np.bool_], box: Sequence[slice]) -> Floats:
        return self.geometry.file_to_world(np.argwhere(mask).mean(0) + [part.start for part in box])

    def count(self, value: int) -> int:
        """Voxels of a label."""
        return int((self.values == value).sum())


def label_file(image: str | Path, labels: str | Path | None, file_ending: str) -> Path:
    """The label file of an image.

    Args:
        image: raw image, or the case as in imagesTr/case.
        labels: folder of label files, or one; None for the folder `labelsTr` beside `imagesTr` (or Ts beside Ts).
        file_ending: of the label files in a folder.

    Raises:
        UserError: there is none.
    """
    path = Path(image)
    if labels is not None and Path(labels).is_file():
        return Path(labels)
    folder = (
        Path(labels)
        if labels
        else path.resolve().parent.with_name(re.sub("^images", "labels", path.resolve().parent.name))
    )
    name = path.name[: -len(file_ending)] if path.name.endswith(file_ending) else path.name
    candidates = [folder / f"{stem}{file_ending}" for stem in (re.sub(r"_\d{4}$", "", name), name)]
    for file in candidates:
        if file.is_file():
            return file
    raise UserError(
        f"there is no label file {candidates[0]} for the image {path}; give the folder of the labels with -l"
    )


def read_labels(file: Path, geometry: ImageGeometry) -> LabelVolume:
    """Read the label file of an image.

    Raises:
        UserError: it cannot be read, or lies elsewhere than the image.
    """
    import SimpleITK as sitk

    try:
        check_files((), None, str(file))
        with itk_is_quiet():
            image = sitk.ReadImage(str(file))
    except BadCase as bad:
        raise UserError(f"the label file {file} cannot be used: {bad}") from bad
    except RuntimeError as error:
        raise UserError(f"the label file {file} cannot be read; is it a NIfTI, NRRD or MHA file?") from error
    if image.GetDimension() != 3:
        raise UserError(f"the label file {file} has {image.GetDimension()} axes; give one with three")
    values = sitk.GetArrayFromImage(image).T
    if not np.issubdtype(values.dtype, np.integer):
        values = np.rint(values).astype(np.int32)
    ends = np.array([[0, 0, 0], np.subtract(values.shape, 1)], dtype=float)
    here = np.array([image.TransformContinuousIndexToPhysicalPoint(end) for end in ends.tolist()])
    if np.abs(geometry.file_to_world(ends) - here).max() > 1.0:  # mm
        raise UserError(f"the label file {file} lies elsewhere than its image; give the image's own labels")
    return LabelVolume(values, geometry)


def label_names(file: Path, chosen: Sequence[str] = ()) -> dict[int, str]:
    """Names of the foreground labels by value, from the dataset.json beside the folder of a label file.

    Args:
        file: a label file.
        chosen: names or values of those that are wanted; none for all.

    Raises:
        UserError: a chosen one does not exist.
    """
    folder = file.resolve().parent.parent
    named: Mapping[str, object] = read_dataset_json(folder)["labels"] if (folder / "dataset.json").is_file() else {}
    names = {value: name for name, value in named.items() if isinstance(value, int) and value > 0 and name != "ignore"}
    if not chosen:
        return names
    values = {name: value for value, name in names.items()}
    wanted = {}
    for label in chosen:
        if label not in values and not label.isdecimal():
            raise UserError(f"there is no label {label!r}; the labels are {', '.join(values) or 'numbers'}")
        value = values.get(label, int(label) if label.isdecimal() else 0)
        wanted[value] = names.get(value, f"label {value}")
    return wanted


def names_of(volumes: Sequence[LabelVolume], named: Mapping[int, str]) -> dict[int, str]:
    """The named labels, or where there are no names all values that occur."""
    if named:
        return dict(named)
    found = sorted({int(value) for volume in volumes for value in np.unique(volume.values) if value > 0})
    return {value: f"label {value}" for value in found}

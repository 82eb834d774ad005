"""Points of images: typed in, drawn from the body, or centres of the labels in their label files."""

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
from nnssl.features.geometry import Floats, ImageGeometry
from nnssl.features.images import PreparedImage

RAS = np.array([-1.0, -1.0, 1.0])  # turns LPS points into RAS, and back
WHOLE, LEFT, RIGHT = "", "left", "right"  # of the patient
_PART = 0.25  # of a label's voxels: a smaller connected part is not one of two halves


def locate(image: PreparedImage, point: Sequence[float], voxel: bool, ras: bool) -> Floats:
    """The point as (3,) voxels (z, y, x) of the preprocessed image.

    Args:
        image: with the point.
        point: (x, y, z) in mm of the world, or voxels of the file.
        voxel: the point is in voxels (integers are centres, the first is 0).
        ras: its millimetres are RAS instead of LPS.

    Raises:
        UserError: it is not in the image, or nnU-Net crops it away.
    """
    geometry, turn = image.geometry, RAS if ras else np.ones(3)
    given = np.asarray(point, dtype=np.float64)
    if not np.isfinite(given).all():
        raise UserError(f"the point {' '.join(f'{v:g}' for v in given)} must be three finite numbers, as in "
                        f"-p 12.5 -30 104")  # fmt: skip
    world = geometry.file_to_world(given) if voxel else given * turn
    at = geometry.world_to_grid(world)
    if not geometry.inside(at):
        corners = np.array([[-0.5] * 3, geometry.size - 0.5])
        ends = geometry.grid_to_world(corners)
        ends = geometry.world_to_file(ends) if voxel else ends * turn
        low, high = ends.min(0), ends.max(0)
        ranges = ", ".join(f"{n} {a:.1f} to {b:.1f}" for n, a, b in zip("xyz", low, high, strict=True))
        unit = "voxels" if voxel else "mm"
        hint = "" if voxel else " (--voxel takes voxels, --ras other signs of x and y)"
        raise UserError(f"the point {' '.join(f'{v:g}' for v in given)} is not in what nnU-Net keeps of {image.name}, "
                        f"which in {unit} is {ranges}; give a point in there{hint}")  # fmt: skip
    return at


def generator(seed: int) -> np.random.Generator:
    """Random numbers of a seed; raises UserError for a seed that numpy or scikit-learn does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"-seed takes a whole number from 0 to {2**32 - 1}, not {seed}")
    return np.random.default_rng(seed)


def body_voxels(seed: int, *draws: tuple[NDArray[np.bool_] | None, int]) -> list[Floats]:
    """Draw different voxels (N, 3) of each mask (Z, Y, X), one draw after the other.

    Args:
        seed: of all draws.
        draws: masks, as `nnssl.features.images.ImageReader.prepare` makes them, with the number of voxels; all of a
            mask's voxels where there are fewer.
    """
    rng, drawn = generator(seed), []
    for body, count in draws:
        assert body is not None
        inside = np.flatnonzero(body)
        chosen = rng.choice(inside, min(count, len(inside)), replace=False)
        drawn.append(np.stack(np.unravel_index(chosen, body.shape), axis=1).astype(np.float64))
    return drawn


@dataclass(frozen=True)
class LabelVolume:
    """A label file.

    Args:
        values: (x, y, z) integers of the file's voxels.
        geometry: of its image.
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
        """Centres of mass of a label, (3,) mm of the world by name; none where the label does not occur.

        `WHOLE` is the label's. For a pair, such as the hippocampi, it is somewhere between both: `LEFT` and `RIGHT` are
        the centres of the halves, where exactly two connected parts hold a quarter of the label each and are farther
        apart along the world's x than along y and z.
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
        UserError: it cannot be read, or is elsewhere than the image.
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
        raise UserError(f"the label file {file} covers another place than its image; give the image's own labels")
    return LabelVolume(values, geometry)


def label_names(file: Path, chosen: Sequence[str] = ()) -> dict[int, str]:
    """Names of the foreground labels by value, from the dataset.json beside the folder of a label file.

    Args:
        file: a label file.
        chosen: names or values of the wanted ones; none for all.

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
    """The named labels, or all values that occur if none is named."""
    if named:
        return dict(named)
    found = sorted({int(value) for volume in volumes for value in np.unique(volume.values) if value > 0})
    return {value: f"label {value}" for value in found}


@dataclass(frozen=True)
class Landmarks:
    """Named points of an image.

    Args:
        names: for the reader.
        points: (N, 3) voxels (z, y, x) of the image's grid.
        sources: of each, the label's value and its key in `LabelVolume.centres`; none for given points.
    """

    names: tuple[str, ...]
    points: Floats
    sources: tuple[tuple[int, str], ...] = ()


def centres_of_labels(labels: LabelVolume, names: Mapping[int, str]) -> Landmarks:
    """Centres of mass of labels as landmarks, of both halves for a label on both sides.

    Labels that do not occur and centres that were cropped away are left out.
    """
    found: list[tuple[str, Floats, tuple[int, str]]] = []
    for value, name in names.items():
        centres = labels.centres(value)
        for side in (LEFT, RIGHT) if LEFT in centres else centres:
            at = labels.geometry.world_to_grid(centres[side])
            if labels.geometry.inside(at):
                found.append((f"{name} ({side})" if side else name, at, (value, side)))
    points = np.array([at for _, at, _ in found]).reshape(-1, 3)
    return Landmarks(tuple(name for name, _, _ in found), points, tuple(source for _, _, source in found))


def places_of(labels: LabelVolume, sources: Sequence[tuple[int, str]]) -> Floats:
    """(N, 3) voxels of an image's grid where landmarks of another one are; NaN where it does not have them."""
    centres = {value: labels.centres(value) for value, _ in sources}
    places = [centres[value].get(side, np.full(3, np.nan)) for value, side in sources]
    return labels.geometry.world_to_grid(np.array(places).reshape(-1, 3))


def format_mm(image: PreparedImage, at: Floats, ras: bool = False) -> str:
    """A point of an image's grid in mm of the world, with the convention."""
    world = image.geometry.grid_to_world(at) * (RAS if ras else 1)
    return "({}) mm {}".format(", ".join(f"{v:.1f}" for v in world), "RAS" if ras else "LPS")


def format_voxel(image: PreparedImage, at: Floats) -> str:
    """The voxel (x, y, z) of the image's file that holds a point of its grid."""
    voxel = np.floor(image.geometry.world_to_file(image.geometry.grid_to_world(at)) + 0.5)
    return "({})".format(", ".join(f"{v:.0f}" for v in voxel))

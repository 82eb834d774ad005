"""Scores of one case: two label files in, one row a structure out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import BadCase, UserError
from nnssl.data.check_case import other_values, read_label
from nnssl.data.trusted import refuse_untrusted_names

TOLERANCE_MM = 2.0  # where none is given


@dataclass(frozen=True)
class Structure:
    """A label or region.

    Args:
        name: in dataset.json.
        key: as nnU-Net has it: the label's number, or a tuple of them for a region.
        tolerance: of its surface, in mm.
    """

    name: str
    key: int | tuple[int, ...]
    tolerance: float

    @property
    def values(self) -> tuple[int, ...]:
        """The numbers in a label file that belong to it."""
        return self.key if isinstance(self.key, tuple) else (self.key,)


def read_structures(
    dataset_json: dict[str, Any], plans: dict[str, Any], tolerances: Sequence[str | float] = ()
) -> list[Structure]:
    """Foreground labels, or regions where the dataset has them, as nnU-Net's label manager lists them.

    Args:
        dataset_json: its `labels` name them.
        plans: they name the label manager.
        tolerances: see `read_tolerances`.

    Raises:
        UserError: see `read_tolerances`; the plans name what nnU-Net must not call.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    refuse_untrusted_names(plans)
    manager = PlansManager(plans).get_label_manager(dataset_json)
    keys = [_key(k) for k in (manager.foreground_regions if manager.has_regions else manager.foreground_labels)]
    names = {_key(value): name for name, value in dataset_json["labels"].items()}
    limits = read_tolerances(tolerances, [names[key] for key in keys])
    return [Structure(names[key], key, limits[names[key]]) for key in keys]


def read_tolerances(given: Sequence[str | float], names: Sequence[str]) -> dict[str, float]:
    """Tolerance in mm of every structure.

    Args:
        given: a number for all structures (2 mm where there is none) and any `NAME=NUMBER` for single ones.
        names: of the structures.

    Raises:
        UserError: no number of at least 0, two numbers for all, an unknown or repeated name.
    """
    common = [item for item in given if "=" not in str(item)]
    if len(common) > 1:
        raise UserError(f"-tolerance takes one number for all structures, not {len(common)}; write the others as "
                        f"{names[0] if names else 'NAME'}={common[1]}")  # fmt: skip
    single: dict[str, float] = {}
    for item in given:
        name, sign, value = str(item).rpartition("=")
        if not sign:
            continue
        if name not in names:
            raise UserError(f"-tolerance names {name or 'nothing'}, which is no structure of dataset.json; those are "
                            f"{', '.join(names)}")  # fmt: skip
        if name in single:
            raise UserError(f"-tolerance names {name} twice; leave one out")
        single[name] = _millimetres(value)
    default = _millimetres(common[0]) if common else TOLERANCE_MM
    return {name: single.get(name, default) for name in names}


def _key(value: Any) -> int | tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)


def _millimetres(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"-tolerance takes millimetres of at least 0, not {value}; type for example -tolerance 2")
    return number


Mask = NDArray[np.bool_]
Absent = Literal["flare", "exclude"]  # what two empty masks score: 1, or nothing at all


def dice(reference: Mask, prediction: Mask, absent: Absent = "flare") -> float:
    """2 |A ∩ B| / (|A| + |B|), in [0, 1]; of two empty masks 1, or NaN where these are excluded."""
    total = int(reference.sum()) + int(prediction.sum())
    if total == 0:
        return _of_nothing(absent)
    return 2 * int((reference & prediction).sum()) / total


def surface_dice(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float, absent: Absent = "flare"
) -> float:
    """Share of both surfaces that lies within the tolerance of the other one (Nikolov et al., 2018), in [0, 1].

    MONAI computes it, with the surface elements and their areas in mm² of DeepMind's `surface-distance`. A structure
    that is cut by the border of the volume has a surface there.

    Args:
        reference: (Z, Y, X); a single slice is compared as a picture, by the length of its outlines.
        prediction: the same.
        spacing: of these axes in mm.
        tolerance: in mm; a distance of just as much is within.
        absent: what two empty masks score. If only one of them is empty, it is 0.

    Raises:
        UserError: MONAI is not installed.
    """
    either = reference | prediction
    if not either.any():
        return _of_nothing(absent)
    if not (reference.any() and prediction.any()):
        return 0.0
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(either))
    flat = 0 if reference.shape[0] == 1 else slice(None)
    masks = [np.ascontiguousarray(mask[box][flat]) for mask in (prediction, reference)]
    return _surface_dice(masks, tuple(float(s) for s in spacing)[-masks[0].ndim :], tolerance)


def _surface_dice(masks: list[Mask], spacing: tuple[float, ...], tolerance: float) -> float:
    import torch

    tensors = [torch.from_numpy(mask)[None, None] for mask in masks]
    # float32 distances of 0.7 mm voxels miss 2.1 mm by a rounding error
    limit = tolerance * (1 + 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = load_monai()(*tensors, [limit], include_background=True, spacing=spacing, use_subvoxels=True)
    return float(value)


def load_monai() -> Any:
    """MONAI's function that computes surface Dice.

    Raises:
        UserError: MONAI is not installed.
    """
    try:
        from monai.metrics import compute_surface_dice
    except ImportError as error:
        raise UserError("surface Dice is computed by MONAI, which is not installed; type: pip install nnssl[evaluate]"
                        ) from error  # fmt: skip
    return compute_surface_dice


def _of_nothing(absent: Absent) -> float:
    return 1.0 if absent == "flare" else math.nan


_NEAR_MM = 1e-2  # between the positions of the same voxel in both files


@dataclass(frozen=True)
class Score:
    """Of one structure in one case.

    Args:
        case: name.
        structure: name.
        dice, nsd: in [0, 1]; NaN where the structure is in neither file and such cases are excluded.
        reference_voxels, predicted_voxels: its size.
    """

    case: str
    structure: str
    dice: float
    nsd: float
    reference_voxels: int
    predicted_voxels: int


def score_case(
    case: str,
    reference: Path,
    prediction: Path,
    reader: type[Any],
    structures: Sequence[Structure],
    allowed: frozenset[int],
    ignored: int | None,
    absent: Absent,
) -> list[Score]:
    """Scores in the order of the structures.

    Args:
        case: name.
        reference: file of the true labels.
        prediction: file of the predicted ones.
        reader: nnU-Net's class that reads such files.
        structures: to be scored.
        allowed: numbers that a label file may hold.
        ignored: number of voxels in the reference that do not count; None if there is no such number.
        absent: see `dice`.

    Raises:
        UserError: a file cannot be read or holds other numbers, or the files do not lie on the same grid.
    """
    (truth, geometry), (predicted, other) = (_read(file, reader, allowed) for file in (reference, prediction))
    advice = f"resample the prediction of {case} to the grid of its reference"
    if truth.shape != predicted.shape:
        raise UserError(f"{prediction} has {_size(predicted.shape)} voxels and {reference} has {_size(truth.shape)}; "
                        f"{advice}")  # fmt: skip
    if not np.allclose(_corners(geometry, truth.shape), _corners(other, truth.shape), atol=_NEAR_MM, rtol=1e-4):
        raise UserError(f"{prediction} and {reference} have the same size and lie elsewhere (spacing, origin or "
                        f"direction differ); {advice}")  # fmt: skip
    counts = None if ignored is None else truth != ignored
    scores = []
    for structure in structures:
        true, found = (_mask(labels, structure, counts) for labels in (truth, predicted))
        nsd = surface_dice(true, found, geometry["spacing"], structure.tolerance, absent)
        sizes = int(true.sum()), int(found.sum())
        scores.append(Score(case, structure.name, dice(true, found, absent), nsd, *sizes))
    return scores


def _mask(labels: np.ndarray, structure: Structure, counts: Mask | None) -> Mask:
    mask = np.isin(labels, structure.values) if len(structure.values) > 1 else labels == structure.values[0]
    return mask if counts is None else mask & counts


def _read(file: Path, reader: type[Any], allowed: frozenset[int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels (Z, Y, X) and nnU-Net's properties, whose `spacing` is in the same order of the axes."""
    try:
        labels, properties = read_label(str(file), reader)
    except BadCase as bad:
        raise UserError(f"{file} cannot be read: {bad}") from bad
    outside = other_values(labels, allowed)
    if outside:
        listed = ", ".join(f"{value:g}" for value in outside[:10])
        raise UserError(f"{file} holds the labels {listed}, which dataset.json does not name; evaluate with the "
                        f"dataset.json that it was made with (-djfile)")  # fmt: skip
    return labels[0], properties


def _corners(properties: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Positions in mm of the first voxel and of the last one along each axis, as far as the reader tells."""
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), float)
        origin, steps = affine[:3, 3], affine[:3, :3].T
        size = shape[::-1]
    elif "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        n = len(stuff["spacing"])
        origin = np.asarray(stuff["origin"], float)
        steps = (np.asarray(stuff["direction"], float).reshape(n, n) * stuff["spacing"]).T
        size = shape[::-1][:n]
    else:
        return np.asarray(properties["spacing"], float)
    ends = [origin + step * (length - 1) for step, length in zip(steps, size, strict=True)]
    # the spacing too: an axis of one voxel has no end
    return np.concatenate([origin, *ends, np.asarray(properties["spacing"], float)])


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape[::-1])

"""Scores of one case: from two label files to one row per structure."""

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
from nnssl.data.classes import class_names, foreground_classes
from nnssl.data.trusted import refuse_untrusted_names

TOLERANCE_MM = 2.0  # default


@dataclass(frozen=True)
class Structure:
    """A label or region.

    Args:
        name: in dataset.json.
        key: nnU-Net's key: the label's number, or a tuple of them for a region.
        tolerance: of its surface, in mm.
    """

    name: str
    key: int | tuple[int, ...]
    tolerance: float

    @property
    def values(self) -> tuple[int, ...]:
        """Its numbers in a label file."""
        return self.key if isinstance(self.key, tuple) else (self.key,)


def read_structures(
    dataset_json: dict[str, Any], plans: dict[str, Any], tolerances: Sequence[str | float] = ()
) -> list[Structure]:
    """Foreground labels, or regions if the dataset has them, as nnU-Net's label manager lists them.

    Args:
        dataset_json: its `labels` give their names.
        plans: they name the label manager.
        tolerances: see `read_tolerances`.

    Raises:
        UserError: see `read_tolerances`; or the plans name a class that is not trusted.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    refuse_untrusted_names(plans)
    manager = PlansManager(plans).get_label_manager(dataset_json)
    keys, names = foreground_classes(manager), class_names(dataset_json)
    limits = read_tolerances(tolerances, [names[key] for key in keys])
    return [Structure(names[key], key, limits[names[key]]) for key in keys]


def read_tolerances(given: Sequence[str | float], names: Sequence[str]) -> dict[str, float]:
    """Tolerance in mm of every structure.

    Args:
        given: a number for all structures (default 2 mm) and any `NAME=NUMBER` for single ones.
        names: of the structures.

    Raises:
        UserError: a value is not a number of at least 0, two numbers are for all, a name is unknown or repeated.
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
            raise UserError(f"-tolerance names {name or 'nothing'}, which is no structure of dataset.json; name one of "
                            f"{', '.join(names)}")  # fmt: skip
        if name in single:
            raise UserError(f"-tolerance names {name} twice; remove one")
        single[name] = _millimetres(value)
    default = _millimetres(common[0]) if common else TOLERANCE_MM
    return {name: single.get(name, default) for name in names}


def _millimetres(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"-tolerance takes millimetres of at least 0, not {value}; type for example -tolerance 2")
    return number


Mask = NDArray[np.bool_]
Absent = Literal["flare", "exclude"]  # score of two empty masks: 1, or none


def dice(reference: Mask, prediction: Mask, absent: Absent = "flare") -> float:
    """2 |A ∩ B| / (|A| + |B|), in [0, 1]; for two empty masks 1, or NaN if they are excluded."""
    total = int(reference.sum()) + int(prediction.sum())
    if total == 0:
        return 1.0 if absent == "flare" else math.nan
    return 2 * int((reference & prediction).sum()) / total


def surface_dice(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float, absent: Absent = "flare"
) -> float:
    """Share of both surfaces within the tolerance of the other one (Nikolov et al., 2018), in [0, 1].

    MONAI computes it from surface elements with areas in mm², as DeepMind's `surface-distance`. A structure that is cut
    by the border of the volume has a surface there.

    Args:
        reference: (Z, Y, X); single slices are compared as 2D images, by the length of their outlines.
        prediction: the same.
        spacing: of these axes in mm.
        tolerance: in mm, inclusive.
        absent: score of two empty masks. If only one of them is empty, the score is 0.

    Raises:
        UserError: MONAI is not installed.
    """
    import torch

    if not (reference.any() and prediction.any()):
        return dice(reference, prediction, absent)  # 0, or the score of two empty masks
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(reference | prediction))
    flat = 0 if reference.shape[0] == 1 else slice(None)
    masks = [torch.from_numpy(np.ascontiguousarray(mask[box][flat]))[None, None] for mask in (prediction, reference)]
    options: dict[str, Any] = {"spacing": tuple(float(s) for s in spacing)[2 - masks[0].ndim :], "use_subvoxels": True}
    # distances of 0.7 mm voxels in float32 miss 2.1 mm by a rounding error
    limits = [tolerance * (1 + 1e-6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(load_monai()(*masks, limits, include_background=True, **options))


def load_monai() -> Any:
    """MONAI's function that computes surface Dice.

    Raises:
        UserError: MONAI is not installed.
    """
    try:
        from monai.metrics import compute_surface_dice
    except ImportError as error:
        raise UserError("surface Dice is computed by MONAI, which is not installed; type: pip install 'nnssl[evaluate]'"
                        ) from error  # fmt: skip
    return compute_surface_dice


_NEAR_MM = 1e-2  # largest distance between the same voxel in both files


@dataclass(frozen=True)
class Score:
    """Scores of one structure in one case.

    Args:
        case: name.
        structure: name.
        dice, nsd: in [0, 1]; NaN if the structure is in neither file and such cases are excluded.
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
        reference: file with the true labels.
        prediction: file with the predicted labels.
        reader: nnU-Net's class that reads such files.
        structures: structures to score.
        allowed: numbers that label files may contain.
        ignored: label of voxels in the reference that do not count, or None.
        absent: see `dice`.

    Raises:
        UserError: a file cannot be read or contains other numbers, or the files have different grids.
    """
    (truth, geometry), (predicted, other) = (_read(file, reader, allowed) for file in (reference, prediction))
    advice = f"resample the prediction of {case} to the grid of its reference"
    if truth.shape != predicted.shape:
        raise UserError(f"{prediction} has {_size(predicted.shape)} voxels and {reference} has {_size(truth.shape)}; "
                        f"{advice}")  # fmt: skip
    if not np.allclose(_corners(geometry, truth.shape), _corners(other, truth.shape), atol=_NEAR_MM, rtol=1e-4):
        raise UserError(f"{prediction} and {reference} have the same size but another spacing, origin or direction; "
                        f"{advice}")  # fmt: skip
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
    """Labels (Z, Y, X) and nnU-Net's properties, with `spacing` in the same order."""
    try:
        labels, properties = read_label(str(file), reader)
    except BadCase as bad:
        raise UserError(f"{file} cannot be read: {bad}") from bad
    outside = other_values(labels, allowed)
    if outside:
        listed = ", ".join(f"{value:g}" for value in outside[:10])
        raise UserError(f"{file} has the labels {listed}, which dataset.json does not list; evaluate with the "
                        f"dataset.json that it was made with (-djfile)")  # fmt: skip
    return labels[0], properties


def _corners(properties: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Positions in mm of the first voxel and of the last one along each axis; the spacing if the reader has no more."""
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
    # with the spacing, because an axis of one voxel has no second end
    return np.concatenate([origin, *ends, np.asarray(properties["spacing"], float)])


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape[::-1])

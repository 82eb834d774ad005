"""Scores of one case: two label files in, one row a structure out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.check_case import other_values, read_label
from nnssl.errors import BadCase, UserError
from nnssl.evaluation.overlap import Absent, Mask, dice, surface_dice
from nnssl.evaluation.structures import Structure

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


@dataclass(frozen=True)
class CaseJob:
    """What a process needs to score a case; plain, so that it can be sent there.

    Args:
        case: name.
        reference, prediction: label files.
        reader: nnU-Net's reader of such files.
        structures: to be scored.
        allowed: numbers that a label file may hold.
        ignored: number of voxels in the reference that do not count; None if there is no such number.
        absent: see `dice`.
    """

    case: str
    reference: Path
    prediction: Path
    reader: Any
    structures: Sequence[Structure]
    allowed: frozenset[int]
    ignored: int | None
    absent: Absent


def score_case(job: CaseJob) -> list[Score]:
    """Scores in the order of the structures.

    Raises:
        UserError: a file cannot be read or holds other numbers, or the files do not lie on the same grid.
    """
    reference, geometry = _read(job, job.reference)
    prediction, other = _read(job, job.prediction)
    _refuse_other_grid(job, reference.shape, prediction.shape, geometry, other)
    counts = None if job.ignored is None else reference != job.ignored
    scores = []
    for structure in job.structures:
        true, found = (_mask(labels, structure, counts) for labels in (reference, prediction))
        scores.append(
            Score(
                job.case,
                structure.name,
                dice(true, found, job.absent),
                surface_dice(true, found, geometry["spacing"], structure.tolerance, job.absent),
                int(true.sum()),
                int(found.sum()),
            )
        )
    return scores


def _mask(labels: np.ndarray, structure: Structure, counts: Mask | None) -> Mask:
    mask = np.isin(labels, structure.values) if len(structure.values) > 1 else labels == structure.values[0]
    return mask if counts is None else mask & counts


def _read(job: CaseJob, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels (Z, Y, X) and nnU-Net's properties, whose `spacing` is in the same order of the axes."""
    try:
        labels, properties = read_label(str(file), type(job.reader))
    except BadCase as bad:
        raise UserError(f"{file} cannot be read: {bad}") from bad
    outside = other_values(labels, job.allowed)
    if outside:
        listed = ", ".join(f"{value:g}" for value in outside[:10])
        raise UserError(f"{file} holds the labels {listed}, which dataset.json does not name; evaluate with the "
                        f"dataset.json that it was made with (-djfile)")  # fmt: skip
    return labels[0], properties


def _refuse_other_grid(
    job: CaseJob, shape: tuple[int, ...], other: tuple[int, ...], geometry: dict[str, Any], of_other: dict[str, Any]
) -> None:
    advice = f"resample the prediction of {job.case} to the grid of its reference"
    if shape != other:
        raise UserError(f"{job.prediction} has {_size(other)} voxels and {job.reference} has {_size(shape)}; {advice}")
    if not np.allclose(_corners(geometry, shape), _corners(of_other, shape), atol=_NEAR_MM, rtol=1e-4):
        raise UserError(f"{job.prediction} and {job.reference} have the same size and lie elsewhere (spacing, origin "
                        f"or direction differ); {advice}")  # fmt: skip


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

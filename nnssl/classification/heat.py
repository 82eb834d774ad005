"""Where the evidence is: the score's gradient by the last map, times the map (Grad-CAM).

The head is linear in the mean of the map over the body. So the gradient is the head's weights, and each cell's part of
the score is the weights times its features: the mean of these parts over the body, the bias with them, is the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl.analysis.files import write_on_image
from nnssl.analysis.planes import Overlay, Row, cells_in, draw_rows
from nnssl.classification.heads import Floats
from nnssl.classification.model import Classifier
from nnssl.classification.windows import spread_maps, windows
from nnssl.core.names import picture
from nnssl.core.system import dispensable
from nnssl.features.images import PreparedImage
from nnssl.features.tiles import dense_features
from nnssl.networks.pyramid import Stride

_COLOURS = "RdBu_r"  # against and for: blue and red are told apart with every kind of colour vision
_WIDEST = 99.0  # percentile of the body's cells that is brightest


def heat_map(
    classifiers: Sequence[Classifier], image: PreparedImage, number: int, device: str
) -> tuple[NDArray[np.float32], Stride]:
    """Each cell's part of a score, averaged over classifiers of one network: (Z', Y', X'), and its stride.

    Args:
        classifiers: of the folds.
        image: preprocessed.
        number: of the class; 0 for a number.
        device: where the networks are.
    """
    assert image.body is not None
    first = classifiers[0]
    if first.way == "finetuned":
        size = image.values.shape[1:]
        maps = [
            spread_maps(
                windows(one.model, one.level or 0, image.values, image.body, device),
                torch.from_numpy(one.head.weights[number]), float(one.head.bias[number]), size,
            )
            for one in classifiers
        ]  # fmt: skip
        return np.mean(maps, axis=0), (1, 1, 1)
    maps = [
        dense_features(one.model, image.values, one.level, device, one.evidence)[number].astype(np.float32)
        for one in classifiers
    ]
    return np.mean(maps, axis=0), first.model.strides[first.level or 0]


def draw_heat(
    classifiers: Sequence[Classifier], image: PreparedImage, predicted: Floats, folder: Path, device: str
) -> None:
    """Write `CASE.nii.gz`, the map of the predicted class on the voxels of the image's file, and `CASE.png`.

    Args:
        classifiers: of the folds.
        image: preprocessed, with its body.
        predicted: its probabilities, or its number.
        folder: to write to.
        device: where the networks are.
    """
    assert image.body is not None
    one = classifiers[0]
    number = int(predicted.argmax()) if one.classes else 0
    cells, stride = heat_map(classifiers, image, number, device)
    inside = cells_in(image.body, stride, cells.shape)
    centre = _baseline(classifiers, cells, inside)
    shown = np.where(inside, cells - centre, 0).astype(np.float32)
    write_on_image(shown[None], stride, image, folder / f"{image.name}.nii.gz")
    said = f"{one.classes[number]}, {predicted[number]:.0%}" if one.classes else f"{predicted[0]:.3g}"
    with dispensable(f"{image.name}.png"):
        _draw(image, shown, stride, inside, f"{one.target} of {image.name}: {said}", folder / f"{image.name}.png",
              "speaks for it, blue against it" if one.classes else "raises it, blue lowers it")  # fmt: skip


def _baseline(classifiers: Sequence[Classifier], cells: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """What is subtracted: 0 for classes, whose scores say for or against; the mean for a number."""
    if classifiers[0].classes or not inside.any():
        return 0.0
    return float(cells[inside].mean())


def _draw(
    image: PreparedImage, cells: NDArray[np.float32], stride: Stride, inside: NDArray[np.bool_], title: str, file: Path,
    meaning: str,
) -> None:  # fmt: skip
    widest = float(np.percentile(np.abs(cells[inside]), _WIDEST)) if inside.any() else 1.0
    strongest = np.unravel_index(np.where(inside, np.abs(cells), -1).argmax(), cells.shape)
    middle = (np.asarray(strongest, dtype=np.float64) + 0.5) * stride - 0.5
    at: Floats = np.round(np.minimum(middle, np.subtract(image.values.shape[1:], 1))).astype(np.float64)
    overlay = Overlay(cells, stride, (-max(widest, 1e-12), max(widest, 1e-12)), inside, _COLOURS, 0.55)
    row = Row(image, at, f"Red {meaning}; the planes cross the strongest cell", overlay,
              mark=False, bar="part of the score")  # fmt: skip
    draw_rows(file, picture(title), [row])

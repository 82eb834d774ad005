"""The demo's picture: a test scan, its true organs, and those found on the pretrained and on the random network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.demo.anatomy import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WINDOW_HU = (-160, 240)  # the usual one for the abdomen


Volume = NDArray[Any]


def read_volume(file: Path) -> tuple[Volume, tuple[float, float, float]]:
    """A NIfTI volume (Z, Y, X) and its voxel size (z, y, x) in mm."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def draw_comparison(
    image: Volume,
    truth: Volume,
    predictions: Mapping[str, Volume],
    spacing: tuple[float, float, float],
    title: str,
    file: Path,
) -> None:
    """Write a PNG: an axial and a coronal slice of the image, of the truth and of every prediction.

    Args:
        image: HU (Z, Y, X).
        truth: labels of the same shape, as in `LABELS`.
        predictions: labels by the title of their column.
        spacing: voxel size (z, y, x) in mm.
        title: of the picture.
        file: where to write it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from nnssl.pretraining.pictures import COLOURS  # imports torch, which the demo must not hold while others compute

    columns: dict[str, Volume | None] = {"scan": None, "truth": truth, **predictions}
    slices = [_fullest(truth, axis) for axis in (0, 1)]
    depth, height, width = (n * s for n, s in zip(truth.shape, spacing, strict=True))
    size = (3.2 * len(columns), 3.2 * (height + depth) / width + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(columns), squeeze=False, height_ratios=[height, depth])
    for axis, (row, index) in enumerate(zip(rows, slices, strict=True)):
        aspect = (spacing[1] if axis == 0 else spacing[0]) / spacing[2]
        for panel, (name, labels) in zip(row, columns.items(), strict=True):
            _draw(panel, image.take(index, axis), None if labels is None else labels.take(index, axis), COLOURS, aspect)
            if axis == 0:
                panel.set_title(name, fontsize=11)
            else:
                panel.invert_yaxis()  # the head is up
    patches = [Patch(color=COLOURS[n - 1], label=organ.replace("_", " ")) for organ, n in LABELS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.suptitle(title)
    temporary = file.with_name(file.name + ".writing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(file)


def _fullest(labels: Volume, axis: int) -> int:
    """The slice along an axis with the most organs, and among those the one with most of each."""
    others = tuple(i for i in range(3) if i != axis)
    area = np.stack([(labels == n).sum(others) for n in LABELS.values()])  # (organs, slices)
    share = area / area.max(1, keepdims=True).clip(1)
    return int(((share > 0.2).sum(0) + share.mean(0)).argmax())


def _draw(panel: Axes, image: Volume, labels: Volume | None, colours: Sequence[str], aspect: float) -> None:
    low, high = _WINDOW_HU
    grey = ((image.astype(np.float32) - low) / (high - low)).clip(0, 1)
    shown = np.repeat(grey[..., None], 3, axis=-1)
    if labels is not None:
        for n in LABELS.values():
            colour = [int(colours[n - 1][i : i + 2], 16) / 255 for i in (1, 3, 5)]
            shown[labels == n] = 0.35 * shown[labels == n] + 0.65 * np.asarray(colour, np.float32)
    panel.imshow(shown, aspect=aspect, interpolation="nearest")
    panel.set_axis_off()

"""The first three principal components of an image's features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl.analysis.files import write_on_image
from nnssl.analysis.planes import Overlay, Row, cells_in, draw_rows
from nnssl.analysis.points import body_voxels, locate
from nnssl.core.errors import UserError
from nnssl.core.figures import check_output, save_numbers
from nnssl.features.components import Projection, balanced_components
from nnssl.features.geometry import Floats
from nnssl.features.images import PreparedImage
from nnssl.features.match import at_fine_cells, read_vectors
from nnssl.features.model import open_features
from nnssl.features.tiles import EncodedImage

_VOXELS = 20_000  # of the body, to fit the components to
_FEWEST = 4  # of them: fewer have no third component
_FIRST = "cividis"  # made for red-green colour blindness
_CELLS = 2**18  # of the finest map at a time
_OPACITY = 0.5  # of the colours over the anatomy
_SHOWN = (1.0, 99.0)  # percentiles of the body's voxels at the ends of a colour


@dataclass(frozen=True)
class Colours:
    """Numbers of a PCA figure.

    Args:
        cells: (3, Z, Y, X) uint8, components 1 to 3 of every cell; 1 to 255 in the body, 0 elsewhere.
        stride: (z, y, x) voxels a cell.
        ends: (3, 2) values of the components at 1 and 255.
        explained: (3,) parts of the variance, 0 to 1.
    """

    cells: NDArray[np.uint8]
    stride: tuple[int, int, int]
    ends: Floats
    explained: Floats


def colour_components(image: EncodedImage, body: NDArray[np.bool_], voxels: Floats) -> Colours:
    """Fit three components to voxels of the body, and colour every cell by them.

    Args:
        image: encoded image.
        body: (Z, Y, X) mask of its voxels.
        voxels: (N, 3) in it.
    """
    vectors = read_vectors(image, voxels)
    components = balanced_components(vectors, 3)
    ends = ends_of_colours(components(vectors))
    cells = project_image(image, components, ends, body)
    return Colours(cells, image.strides["fine"], ends, components.explained)


def ends_of_colours(projected: Floats) -> Floats:
    """(k, 2) darkest and brightest values of projected vectors (N, k)."""
    return np.percentile(projected, _SHOWN, axis=0).T


def project_image(
    image: EncodedImage, components: Projection, ends: Floats, body: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The components of every cell of an image's finest map, as colours.

    Coarser maps are interpolated trilinearly. Projecting them first gives the same with little memory.

    Args:
        image: maps of an image.
        components: k of the vectors of all maps.
        ends: (k, 2) values that become 1 and 255.
        body: (Z, Y, X) voxels to show; cells with their centre elsewhere are 0.

    Returns:
        (k, Z, Y, X) of the cells of the finest map.
    """
    parts = components.apart([len(values) for values in image.maps.values()])
    projected = {
        name: torch.einsum("kd,dzyx->kzyx", part, values.float())
        for part, (name, values) in zip(parts, image.maps.items(), strict=True)
    }
    low = torch.from_numpy(ends[:, 0]).float()[:, None, None, None]
    width = torch.from_numpy(np.maximum(ends[:, 1] - ends[:, 0], 1e-12)).float()[:, None, None, None]
    fine = projected.pop("fine") + components.offset[:, None, None, None]
    colours = np.zeros(fine.shape, dtype=np.uint8)
    planes = max(1, _CELLS // int(np.prod(fine.shape[2:])))
    for first in range(0, fine.shape[1], planes):
        total = fine[:, first : first + planes].clone()
        for name, values in projected.items():
            total += at_fine_cells(values, image, name, first, planes)
        shown = 1 + 254 * ((total - low) / width).clamp(0, 1)
        colours[:, first : first + planes] = shown.round().byte().numpy()
    return colours * cells_in(body, image.strides["fine"], colours.shape[1:])


def visualize_pca(
    model: str | Path,
    image: str | Path,
    output: str | Path,
    point: Sequence[float] | None = None,
    voxel: bool = False,
    ras: bool = False,
    level: int | None = None,
    seed: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Colours:
    """Draw the first three principal components of an image's features as red, green and blue.

    Written: the picture; beside it its numbers (.json) and the colours on the voxels of the image's file (.nii.gz, in
    NIfTI's own colour type).

    Args:
        model: RUN of any method, see `nnssl.features.model.open_features`.
        image: raw image, see `nnssl.features.cases.channel_files`.
        output: the PNG.
        point: (x, y, z) where the planes cross, see `nnssl.analysis.points.locate`; None for the middle of the body.
        voxel: the point is in voxels.
        ras: its millimetres are RAS instead of LPS.
        level: of the feature pyramid; None as for `open_features`.
        seed: of the voxels that the components are fitted to.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, the image is of another modality or has hardly any body, or the
            point is not in it.
    """
    file = check_output(output, ".nii.gz")
    source = open_features(model, level, device, [image], allow_other_intensities)
    (prepared,) = source.images.prepare([image])
    body = prepared.body
    assert body is not None
    (voxels,) = body_voxels(seed, (body, _VOXELS))
    if len(voxels) < _FEWEST:
        raise UserError(f"{image} shows a body of only {len(voxels)} voxels, and three components need at least "
                        f"{_FEWEST}; give another image")  # fmt: skip
    at = np.round(np.median(voxels, axis=0)) if point is None else locate(prepared, point, voxel, ras)
    colours = colour_components(source.encode(prepared), body, voxels)
    write_on_image(colours.cells, colours.stride, prepared, file.with_suffix(".nii.gz"))
    numbers = {
        "features": source.title,
        "image": prepared.name,
        "explained_variance": colours.explained,
        "values_at_1_and_255": colours.ends,
        "cell_mm": np.asarray(colours.stride) * prepared.geometry.spacing,
        "voxels": len(voxels),
    }
    save_numbers(numbers, file)
    _draw(colours, prepared, body, at, source.title, file, ras)
    return colours


def _draw(
    colours: Colours, image: PreparedImage, body: NDArray[np.bool_], at: Floats, features: str, file: Path, ras: bool
) -> None:
    shown = cells_in(body, colours.stride, colours.cells.shape[1:])
    said = ", ".join(
        f"{name} {part:.0%}" for name, part in zip(("red", "green", "blue"), colours.explained, strict=True)
    )
    low, high = colours.ends[0]
    first = low + (colours.cells[0].astype(np.float64) - 1) / 254 * (high - low)
    overlay = Overlay(colours.cells, colours.stride, shown=shown, opacity=_OPACITY)
    of_first = Overlay(first, colours.stride, (low, high), shown, _FIRST, _OPACITY)
    rows = [
        Row(image, at, f"Components 1 to 3 as {said} of the variance", overlay, mark=False, ras=ras),
        Row(image, at, "Component 1", of_first, mark=False, bar="component 1 (no unit)", ras=ras),
    ]
    draw_rows(file, f"Principal components of the features of {image.name} ({features})", rows)

"""The first three principal components of an image's features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.canvas import (
    Overlay,
    check_output,
    draw_bar,
    draw_planes,
    height_of_planes,
    page,
    parts_of,
    row_of_planes,
    save_numbers,
    save_png,
)
from nnssl.analysis.components import Balance, cells_in, ends_of_colours, principal_components, project_image
from nnssl.analysis.features import Floats, body_of, body_voxels, generator, open_features, read_vectors
from nnssl.analysis.match import locate
from nnssl.analysis.rasters import onto_file, save_nifti, size_of_file
from nnssl.features.images import PreparedImage
from nnssl.features.match import EncodedImage

_VOXELS = 20_000  # of the body, that the components are fitted to
_FIRST = "cividis"  # made for red-green colour blindness


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
    balance = Balance.of(vectors)
    balanced = balance(vectors)
    components = principal_components(balanced, 3)
    ends = ends_of_colours(components(balanced))
    cells = project_image(image, balance, components, ends, body)
    return Colours(cells, image.strides["fine"], ends, components.explained)


def visualize_pca(
    model: str | Path,
    image: str | Path,
    output: str | Path,
    point: Sequence[float] | None = None,
    voxel: bool = False,
    ras: bool = False,
    level: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    allow_other_intensities: bool = False,
) -> Colours:
    """Draw the first three principal components of an image's features as red, green and blue.

    Written: the picture; beside it its numbers (.json) and the colours on the voxels of the image's file (.nii.gz, in
    NIfTI's own colour type).

    Args:
        model: run folder or checkpoint of any method.
        image: raw image, see `nnssl.features.images.channel_files`.
        output: the PNG.
        point: (x, y, z) that the planes go through, in mm of the world or voxels of the file; None for the middle of
            the body.
        voxel: whether the point is in voxels.
        ras: whether its millimetres are RAS instead of LPS.
        level: see `nnssl.analysis.features.open_features`.
        seed: of the voxels that the components are fitted to.
        device: `cpu` or `cuda`.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, the image is of another modality, or the point is not in it.
    """
    file = check_output(output, ".nii.gz")
    source = open_features(model, level, device, [image], allow_other_intensities)
    prepared = source.prepare(image)
    source.guard.report()
    body = body_of(prepared)
    voxels = body_voxels(body, _VOXELS, generator(seed))
    at = np.round(np.median(voxels, axis=0)) if point is None else locate(prepared, point, voxel, ras)
    colours = colour_components(source.encode(prepared), body, voxels)
    save_nifti(onto_file(colours.cells, colours.stride, prepared.geometry, size_of_file(source, image)),
               prepared.geometry, file.with_suffix(".nii.gz"))  # fmt: skip
    numbers = {
        "features": source.title,
        "image": prepared.name,
        "explained_variance": colours.explained,
        "values_at_1_and_255": colours.ends,
        "cell_mm": np.asarray(colours.stride) * prepared.geometry.spacing,
        "voxels": len(voxels),
    }
    save_numbers(numbers, file)
    _draw(colours, prepared, body, at, source.title, file)
    return colours


def _draw(
    colours: Colours, image: PreparedImage, body: NDArray[np.bool_], at: Floats, features: str, file: Path
) -> None:
    height = height_of_planes(image, at)
    figure = page(2 * height + 0.4, f"Principal components of the features of {image.name} ({features})")
    rows = parts_of(figure, [1, 1])
    shown = cells_in(body, colours.stride, colours.cells.shape[1:])
    said = ", ".join(
        f"{name} {part:.0%}" for name, part in zip(("red", "green", "blue"), colours.explained, strict=True)
    )
    titles = (f"Components 1 to 3 as {said} of the variance", "Component 1")
    overlays = (Overlay(colours.cells, shown, colours.stride, opacity=0.85),
                Overlay(_values(colours, 0), shown, colours.stride, tuple(colours.ends[0]), _FIRST, 0.85))  # fmt: skip
    for row, title, overlay in zip(rows, titles, overlays, strict=True):
        axes, beside = row_of_planes(row, image, at, title)
        drawn = draw_planes(axes, image, at, overlay, mark=False)
        if overlay.cells.ndim == 3:
            assert drawn is not None
            draw_bar(row, beside, drawn, "component 1")
    save_png(figure, file)


def _values(colours: Colours, component: int) -> NDArray[np.float64]:
    low, high = colours.ends[component]
    return np.asarray(low + (colours.cells[component].astype(np.float64) - 1) / 254 * (high - low))

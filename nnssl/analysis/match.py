"""A point of one raw image, found in another one: what `nnssl_match` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.planes import Overlay, Row, draw_rows
from nnssl.analysis.points import RAS, format_mm, format_voxel, locate
from nnssl.core.figures import check_folder
from nnssl.features.geometry import Floats
from nnssl.features.images import PreparedImage
from nnssl.features.match import ANYWHERE, distance_back, share_as_good, similarity_map
from nnssl.features.model import open_features

log = logging.getLogger("nnssl")
_OPACITY = 0.55  # of the similarity over the image


@dataclass(frozen=True)
class Place:
    """A point of an image: (3,) mm (x, y, z) in the world, and (3,) voxels (x, y, z) of the file, not always whole."""

    name: str
    world: Floats
    voxel: Floats


@dataclass(frozen=True)
class Match:
    """What was found.

    Args:
        query: the point.
        key: its best match, the centre of a cell.
        similarity: mean cosine of the embeddings, -1 to 1.
        back_mm: distance from the point to where the match lands when searched in the query image.
        cell_mm: (3,) size (z, y, x) of a cell, in mm: the precision of a match.
    """

    query: Place
    key: Place
    similarity: float
    back_mm: float
    cell_mm: Floats


def match(
    model: str | Path,
    query: str | Path,
    key: str | Path,
    point: Sequence[float],
    output: str | Path | None = None,
    voxel: bool = False,
    ras: bool = False,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Match:
    """Find the point of the key image that is most similar to a point of the query image.

    Args:
        model: run folder of a pretraining with `sam` or `lapn`, or a checkpoint; or `random:RUN`.
        query: raw image, see `nnssl.features.cases.channel_files`.
        key: raw image.
        point: (x, y, z), see `nnssl.analysis.points.locate` for it, `voxel` and `ras`.
        output: PNG to write; None for none.
        voxel: the point is in voxels of the query's file.
        ras: world coordinates are RAS, here and in the result; otherwise LPS.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take images of another modality than the pretraining's.

    Raises:
        UserError: a file is missing or cannot be used, the images are of another modality (`nnssl.data.guard`), or the
            point is not in the image.
    """
    if output is not None:
        check_folder(Path(output))
    source = open_features(model, None, device, [query, key], allow_other_intensities, encodings=True)
    asked, searched = source.images.prepare([query, key], with_body=False)
    at = locate(asked, point, voxel, ras)
    # not blended: encodings as a pretraining that pairs volumes stores them
    encoded, other = (source.encode(image, blend=False) for image in (asked, searched))
    similarity, found = similarity_map(encoded, other, at)
    if (share := share_as_good(similarity)) > ANYWHERE:
        log.warning(f"{share:.0%} of {searched.name} is as similar to the point as the best place there "
                    f"({found.similarity[0]:.2f}): this model does not tell places apart, and the match means nothing; "
                    f"pretrain it for more steps, or take another one with -m")  # fmt: skip
    best, stride = found.points[0], other.strides["fine"]
    if output is not None:
        draw_match(asked, searched, at, best, similarity, stride, Path(output), ras)
    return Match(
        _place(asked, at, ras),
        _place(searched, best, ras),
        float(found.similarity[0]),
        float(distance_back(encoded, other, at, found, asked.geometry.spacing)[0]),
        np.asarray(stride) * searched.geometry.spacing,
    )


def _place(image: PreparedImage, at: Floats, ras: bool) -> Place:
    world = image.geometry.grid_to_world(at)
    return Place(image.name, world * RAS if ras else world, image.geometry.world_to_file(world))


def draw_match(
    query: PreparedImage,
    key: PreparedImage,
    point: Floats,
    best: Floats,
    similarity: NDArray[np.float32],
    stride: Sequence[int],
    file: Path,
    ras: bool = False,
) -> None:
    """Write a PNG: three planes of the query image through the point, and of the key image through the best one.

    The key image comes twice: clean, and marked under the similarity. See `nnssl.analysis.planes.Row` for the planes.

    Args:
        query: image with the point.
        key: image that was searched.
        point: (3,) voxels (z, y, x) of the query image's grid.
        best: (3,) voxels of the key image's grid.
        similarity: (Z, Y, X) of the cells of the key image.
        stride: voxels a cell.
        file: to write.
        ras: millimetres are RAS instead of LPS.
    """
    ends = float(similarity.min()), float(similarity.max())
    here, there = (
        f"{image.name} at {format_mm(image, at, ras)}, voxel {format_voxel(image, at)}"
        for image, at in ((query, point), (key, best))
    )
    heat = Overlay(similarity, stride, ends, opacity=_OPACITY)
    bar = f"mean cosine (no unit)\n{ends[0]:.2f} to {ends[1]:.2f}"
    rows = [
        Row(query, point, f"Point in {here}", ras=ras),
        Row(key, best, f"Best match in {there}", mark=False, ras=ras),
        Row(key, best, f"Similarity of all places to the point, {ends[1]:.3f} at the best", heat, bar=bar, ras=ras),
    ]
    draw_rows(file, f"A point of {query.name}, found in {key.name}", rows)

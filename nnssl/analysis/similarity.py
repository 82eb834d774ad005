"""How alike the places of an image are to one of them (PiMPiC's Fig. 3 A-D, for every method)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnssl.analysis.files import write_on_image
from nnssl.analysis.planes import HEAT, Overlay, Row, cells_in, draw_rows
from nnssl.analysis.points import body_voxels, format_mm, locate
from nnssl.core.figures import check_output, save_numbers
from nnssl.features.components import balanced_components
from nnssl.features.geometry import Floats, ImageGeometry
from nnssl.features.images import PreparedImage
from nnssl.features.match import comparable, read_vectors, similarity_map
from nnssl.features.model import open_features
from nnssl.features.tiles import EncodedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_VOXELS = 3_000  # of the body, for the numbers besides the map
_STEP = 10.0  # mm, of the profile
_PLOTS = 3.6  # inches high
_ORANGE = "#D55E00"
_DOTS = 1_500  # more hide each other and make the file large


@dataclass(frozen=True)
class Similarity:
    """Numbers of a similarity figure.

    Args:
        reference: (3,) voxels (z, y, x) of the reference in the first image's grid.
        best: (3,) voxels of the most similar cell's centre in the searched image's grid; the reference itself where
            its own image is searched.
        map: (Z, Y, X) cosine similarity of every cell of the searched image, -1 to 1.
        stride: (z, y, x) voxels a cell.
        distances: (N,) mm from `best` to voxels of the body.
        similarities: (N,) of these voxels.
        components: (N, 2) principal components of their features.
        explained: (2,) parts of the variance, 0 to 1.
        reference_components: (2,) of the reference's feature.
    """

    reference: Floats
    best: Floats
    map: NDArray[np.float32]
    stride: tuple[int, int, int]
    distances: Floats
    similarities: Floats
    components: Floats
    explained: Floats
    reference_components: Floats


def distances_mm(geometry: ImageGeometry, points: ArrayLike, point: ArrayLike) -> Floats:
    """(N,) mm in the world between voxels (N, 3) of an image's grid and one of them (3,)."""
    away: Floats = geometry.grid_to_world(points) - geometry.grid_to_world(point)
    return np.asarray(np.linalg.norm(away, axis=-1))


def mean_by_distance(distances: Floats, similarities: Floats, step: float = _STEP) -> list[tuple[float, float, int]]:
    """Mean similarity in shells of `step` mm: (outer radius, mean, number of voxels), without empty shells."""
    shell = np.floor(distances / step).astype(int)
    return [((s + 1) * step, float(similarities[shell == s].mean()), int((shell == s).sum())) for s in np.unique(shell)]


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's correlation; NaN where one of them is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def compare(
    query: EncodedImage, key: EncodedImage, geometry: ImageGeometry, point: Floats, voxels: Floats
) -> Similarity:
    """Compare a point with all places of an image.

    Args:
        query: encoded image with the point, ready for cosines.
        key: encoded image to search; it may be the same object.
        geometry: of the searched image.
        point: (3,) voxels of the query image.
        voxels: (N, 3) of the searched image's body.
    """
    similarity, match = similarity_map(query, key, point)
    best = point if key is query else match.points[0]
    stride = key.strides["fine"]
    cells = tuple(np.floor((voxels + 0.5) / np.asarray(stride)).astype(int).T)
    vectors = read_vectors(key, voxels)
    components = balanced_components(vectors, 2)
    reference = components(read_vectors(query, point))[0]
    return Similarity(point, best, similarity, stride, distances_mm(geometry, voxels, best),
                      similarity[cells].astype(np.float64), components(vectors), components.explained,
                      reference)  # fmt: skip


def visualize_similarity(
    model: str | Path,
    image: str | Path,
    output: str | Path,
    key: str | Path | None = None,
    point: Sequence[float] | None = None,
    voxel: bool = False,
    ras: bool = False,
    level: int | None = None,
    seed: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Similarity:
    """Draw how similar every place of an image is to a point, and the principal components against the distance.

    Written: the picture; beside it its numbers (.json) and the similarities on the voxels of the searched image's file
    (.nii.gz).

    Args:
        model: RUN of any method, see `nnssl.features.model.open_features`.
        image: raw image with the point, see `nnssl.features.cases.channel_files`.
        output: the PNG.
        key: raw image to search; None for the same.
        point: (x, y, z), see `nnssl.analysis.points.locate`; None for one drawn from the body.
        voxel: the point is in voxels.
        ras: its millimetres are RAS instead of LPS.
        level: of the feature pyramid; None as for `open_features`.
        seed: of all random draws.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, an image is of another modality, or the point is not in the
            image.
    """
    file = check_output(output, ".nii.gz")
    images = [image] if key is None else [image, key]
    source = open_features(model, level, device, images, allow_other_intensities)
    prepared = list(source.images.prepare(images))
    asked, searched = prepared[0], prepared[-1]
    # the reference is none of these voxels: it would be 0 mm from itself and as similar as can be
    drawn = [(asked.body, _VOXELS)] + ([(asked.body, 1)] if point is None else [])
    voxels, *others = body_voxels(seed, *drawn, *((other.body, _VOXELS) for other in prepared[1:]))
    at = others[0][0] if point is None else locate(asked, point, voxel, ras)
    encoded = comparable([source.encode(image) for image in prepared], voxels, source.encodes)
    found = compare(encoded[0], encoded[-1], searched.geometry, at, voxels if key is None else others[-1])
    assert searched.body is not None
    shown = cells_in(searched.body, found.stride, found.map.shape)
    write_on_image(np.where(shown, found.map, 0)[None], found.stride, searched, file.with_suffix(".nii.gz"))
    save_numbers(_numbers(found, source.title, asked, searched, shown), file)
    coarsest = np.max(list(encoded[0].strides.values()), axis=0)
    draw_similarity(found, asked, searched, shown, coarsest, source.title, file, ras)
    return found


def _numbers(
    found: Similarity, features: str, query: PreparedImage, key: PreparedImage, shown: NDArray[np.bool_]
) -> dict[str, Any]:
    inside = found.map[shown]
    return {
        "features": features,
        "reference": {"image": query.name, "mm_lps": query.geometry.grid_to_world(found.reference)},
        "most_similar": {
            "image": key.name,
            "mm_lps": key.geometry.grid_to_world(found.best),
            "similarity": float(inside.max()),
        },
        "similarity_in_body": {"mean": float(inside.mean()), "std": float(inside.std())},
        "rank_correlation_of_similarity_and_distance": rank_correlation(found.similarities, found.distances),
        "mean_similarity_by_distance": [
            {"up_to_mm": edge, "similarity": mean, "voxels": count}
            for edge, mean, count in mean_by_distance(found.distances, found.similarities)
        ],
        "explained_variance": found.explained,
        "cell_mm": np.asarray(found.stride) * key.geometry.spacing,
    }


def draw_similarity(
    found: Similarity, query: PreparedImage, key: PreparedImage, shown: NDArray[np.bool_],
    patch: Sequence[int], features: str, file: Path, ras: bool = False,
) -> None:  # fmt: skip
    """Write the PNG.

    Args:
        found: the numbers.
        query: image with the reference.
        key: image that was searched.
        shown: (Z, Y, X) cells of the body in the searched image.
        patch: (z, y, x) voxels of the coarsest cell, outlined around the reference.
        features: for the title.
        file: to write.
        ras: millimetres are RAS instead of LPS.
    """
    same = found.best is found.reference
    here = format_mm(query, found.reference, ras)
    there = "" if same else f", largest at {format_mm(key, found.best, ras)}"
    inside = found.map[shown]
    heat = Overlay(found.map, found.stride, (float(np.percentile(inside, 0.5)), float(inside.max())), shown)
    bar = f"cosine similarity\n{inside.min():.2f} to {inside.max():.2f} in the body"
    rows = [
        Row(query, found.reference, f"Reference in {query.name} at {here}", cell=patch, ras=ras),
        Row(key, found.best, f"Cosine similarity in {key.name}{there}", heat, bar=bar, ras=ras),
    ]

    def plots(part: SubFigure) -> None:
        left, right = part.subplots(1, 2)
        origin = f"distance to {'the reference' if same else 'the most similar place'} (mm)"
        _draw_components(left, found, origin)
        _draw_profile(right, found, origin)

    draw_rows(file, f"Similarity to one place ({features})", rows, plots, _PLOTS)


def _draw_components(axis: Axes, found: Similarity, label: str) -> None:
    order = np.argsort(-found.distances[:_DOTS])  # near ones on top
    # bright is near, as in the heat map
    x, y = found.components[order].T
    points = axis.scatter(x, y, c=found.distances[order], cmap=f"{HEAT}_r", s=7, linewidths=0)
    axis.plot(*found.reference_components, "*", markersize=15, color=_ORANGE, markeredgecolor="black",
              label="reference")  # fmt: skip
    assert axis.figure is not None
    axis.figure.colorbar(points, ax=axis, label=label)
    axis.set_xlabel(f"component 1 ({found.explained[0]:.0%} of the variance)")
    axis.set_ylabel(f"component 2 ({found.explained[1]:.0%})")
    axis.set_title("Principal components of the body's features", fontsize=10.5)
    axis.legend(loc="best", fontsize=9)


def _draw_profile(axis: Axes, found: Similarity, label: str) -> None:
    axis.scatter(found.distances[:_DOTS], found.similarities[:_DOTS], s=4, color="0.6", linewidths=0,
                 label="a voxel of the body")  # fmt: skip
    edges, means, _ = zip(*mean_by_distance(found.distances, found.similarities), strict=True)
    width = edges[0] if len(edges) == 1 else min(np.diff(edges))
    axis.plot(np.subtract(edges, width / 2), means, "o-", color=_ORANGE, markersize=4, label=f"mean of {width:.0f} mm")
    axis.set_xlabel(label)
    axis.set_ylabel("cosine similarity")
    axis.set_title("Similarity against distance", fontsize=10.5)
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=9, markerscale=2)

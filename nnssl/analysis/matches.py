"""Landmarks of one image, found in others by their features: a column for each landmark, a row for each image."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnssl.analysis.planes import Scale, page, save_page, show_grey, turn_axes
from nnssl.analysis.points import (
    Landmarks,
    body_voxels,
    centres_of_labels,
    label_file,
    label_names,
    locate,
    names_of,
    places_of,
    read_labels,
)
from nnssl.core.errors import UserError
from nnssl.core.figures import COLOURS, WIDTH, check_output, halo, save_numbers, write_inside
from nnssl.core.names import picture
from nnssl.features.geometry import Floats
from nnssl.features.images import PreparedImage, grey_window
from nnssl.features.match import comparable, distance_back, match_points
from nnssl.features.model import FeatureSource, open_features
from nnssl.features.tiles import EncodedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger("nnssl")
_VOXELS = 3_000  # of the body, for the mean feature to subtract
_SHOWN = 5  # landmarks in a picture, at most: more columns hold no title
_CHARACTERS = 12  # of a title to an inch
_HIGHEST = 3.2  # inches of a slice
_PALETTE = tuple(COLOURS[i] for i in (4, 5, 2, 3, 6, 1))  # those that stand out of grey


@dataclass(frozen=True)
class Found:
    """Landmarks found in an image.

    Args:
        image: the searched one.
        points: (N, 3) voxels of its grid.
        truth: (N, 3) places by its labels; NaN where unknown.
        errors: (N,) mm between both.
        similarity: (N,) mean cosine of the features, -1 to 1.
        back: (N,) mm between the landmark and where the match lands when searched in the first image.
    """

    image: PreparedImage
    points: Floats
    truth: Floats
    errors: Floats
    similarity: Floats
    back: Floats


def find_landmarks(
    query: EncodedImage, key: EncodedImage, asked: PreparedImage, searched: PreparedImage, points: Floats, truth: Floats
) -> Found:
    """Find landmarks of one image in another one.

    Args:
        query: encoded image with the landmarks.
        key: encoded image to search.
        asked: the first image.
        searched: the second one.
        points: (N, 3) voxels of the first image.
        truth: (N, 3) voxels of the second one, or NaN.
    """
    found = match_points(query, key, points)
    back = distance_back(query, key, points, found, asked.geometry.spacing)
    away = searched.geometry.grid_to_world(found.points) - searched.geometry.grid_to_world(truth)
    return Found(searched, found.points, truth, np.linalg.norm(away, axis=1), found.similarity, back)


def visualize_matches(
    model: str | Path,
    image: str | Path,
    keys: Sequence[str | Path],
    output: str | Path,
    points: Sequence[Sequence[float]] = (),
    voxel: bool = False,
    ras: bool = False,
    labels: str | Path | None = None,
    chosen: Sequence[str] = (),
    level: int | None = None,
    seed: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> list[Found]:
    """Find landmarks of an image in others, and draw both side by side.

    Landmarks are the centres of mass of the image's labels, or of their halves (see `LabelVolume.centres`), or given
    points. Where the other images have labels too, the error is the distance to the same centre of mass. The picture
    shows at most five: those of the smallest labels, or the first given or chosen ones; the numbers (.json) hold all.

    Args:
        model: RUN of any method, see `nnssl.features.model.open_features`; encodings of `lapn` and `sam` are
            trained for this.
        image: raw image with the landmarks, see `nnssl.features.cases.channel_files`.
        keys: raw images to search.
        output: the PNG.
        points: (x, y, z) of landmarks, see `nnssl.analysis.points.locate`; none for the labels.
        voxel: points are in voxels.
        ras: their millimetres are RAS instead of LPS.
        labels: folder of the label files; None for `labelsTr` beside `imagesTr`.
        chosen: names or values of the labels; none for all.
        level: of the feature pyramid; None as for `open_features`.
        seed: of the voxels whose mean feature is subtracted.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, an image is of another modality, a point is not in the image,
            or there are no landmarks.
    """
    file = check_output(output)
    source = open_features(model, level, device, [image, *keys], allow_other_intensities)
    prepared = source.images.prepare([image, *keys])
    asked = next(prepared)
    if points:
        places = np.stack([locate(asked, point, voxel, ras) for point in points])
        landmarks = Landmarks(tuple(f"point {n + 1}" for n in range(len(places))), places)
    else:
        landmarks = _landmarks(source, asked, image, labels, chosen)
    (voxels,) = body_voxels(seed, (asked.body, _VOXELS))
    query = source.encode(asked)
    found = []
    for other, searched in zip(keys, prepared, strict=True):
        encoded, key = comparable([query, source.encode(searched)], voxels, source.encodes)
        truth = _truth(source, searched, other, labels, landmarks)
        found.append(find_landmarks(encoded, key, asked, searched, landmarks.points, truth))
    save_numbers(_numbers(source, asked, landmarks, found), file)
    draw_matches(asked, landmarks, found, source.title, file)
    return found


def _landmarks(
    source: FeatureSource, image: PreparedImage, path: str | Path, labels: str | Path | None, chosen: Sequence[str]
) -> Landmarks:
    """Landmarks of the image's labels that occur there; the smallest labels first where none are chosen."""
    file = label_file(path, labels, source.origin.dataset_json["file_ending"])
    volume = read_labels(file, image.geometry)
    names = names_of([volume], label_names(file, chosen))
    if not chosen:
        names = dict(sorted(names.items(), key=lambda item: volume.count(item[0])))
    landmarks = centres_of_labels(volume, names)
    if not landmarks.names:
        raise UserError(f"{file} has none of the labels; give another image, or points with -p")
    return landmarks


def _truth(
    source: FeatureSource, image: PreparedImage, path: str | Path, labels: str | Path | None, landmarks: Landmarks
) -> Floats:
    """Where the landmarks of another image are; NaN for given points, and where the image has no label file."""
    unknown = np.full_like(landmarks.points, np.nan)
    if not landmarks.sources:
        return unknown
    try:
        file = label_file(path, labels, source.origin.dataset_json["file_ending"])
    except UserError as missing:
        log.info(f"no errors in mm for {image.name}: {missing}")
        return unknown
    return places_of(read_labels(file, image.geometry), landmarks.sources)


def _numbers(
    source: FeatureSource, asked: PreparedImage, landmarks: Landmarks, found: Sequence[Found]
) -> dict[str, Any]:
    return {
        "features": source.title,
        "image": asked.name,
        "landmarks": {
            name: asked.geometry.grid_to_world(point)
            for name, point in zip(landmarks.names, landmarks.points, strict=True)
        },
        "matches": [
            {
                "image": match.image.name,
                "median_error_mm": float(np.nanmedian(match.errors)) if np.isfinite(match.errors).any() else None,
                "landmarks": {
                    name: {
                        "mm_lps": match.image.geometry.grid_to_world(match.points[n]),
                        "truth_mm_lps": match.image.geometry.grid_to_world(match.truth[n]),
                        "error_mm": match.errors[n],
                        "similarity": match.similarity[n],
                        "back_mm": match.back[n],
                    }
                    for n, name in enumerate(landmarks.names)
                },
            }
            for match in found
        ],
    }


def draw_matches(asked: PreparedImage, landmarks: Landmarks, found: Sequence[Found], features: str, file: Path) -> None:
    """Write the PNG: axial slices through the first landmarks, and in each searched image through their matches.

    A ring marks the landmark or its match, a cross the place by the labels, projected where it is in another slice.

    Args:
        asked: image with the landmarks.
        landmarks: of it.
        found: in the other images.
        features: for the title.
        file: to write.
    """
    images = [asked, *(match.image for match in found)]
    columns, rows_of = min(_SHOWN, len(landmarks.names)), len(images)
    tallest = max(_height_over_width(image) for image in images)
    width = WIDTH / columns - 0.2
    figure = page(
        rows_of * (min(width * tallest, _HIGHEST) + 0.75) + 0.9,
        f"Landmarks of {asked.name} found in other images ({features})\npositions: x y z in mm (LPS), axial slices",
    )
    axes = figure.subplots(rows_of, columns, squeeze=False)
    for number, colour in zip(range(columns), _PALETTE, strict=False):
        at = landmarks.points[number]
        _slice(axes[0][number], asked, at, colour)
        name = picture(fit_title(landmarks.names[number], width))
        _title(axes[0][number], name, f"at {_position(asked, at)}")
        for row, match in enumerate(found, start=1):
            _draw_found(axes[row][number], match, number, colour)
    for row, image in enumerate(images):
        axes[row][0].set_ylabel(picture(image.name), fontsize=9)
    _legend(figure, bool(np.isfinite([match.errors for match in found]).any()))
    save_page(figure, file)


def _title(axis: Axes, *lines: str) -> None:
    axis.set_title("\n".join(lines), fontsize=8)


def _position(image: PreparedImage, at: Floats) -> str:
    return " ".join(f"{mm:.1f}" for mm in image.geometry.grid_to_world(at))


def fit_title(name: str, width: float) -> str:
    """The name of a landmark, in lines that fit a column `width` inches wide."""
    return textwrap.fill(name.replace("_", " "), int(width * _CHARACTERS))


def _height_over_width(image: PreparedImage) -> float:
    size, spacing = image.values.shape[1:], image.geometry.spacing
    plane = Scale.of(image, np.zeros(3)).planes(np.zeros(3), size)[0]
    return float(size[plane.rows] * spacing[plane.rows] / (size[plane.columns] * spacing[plane.columns]))


def _slice(axis: Axes, image: PreparedImage, at: Floats, colour: str) -> None:
    """The axial slice through a point, with a ring around it."""
    scale, grey = Scale.of(image, at), image.values[0]
    plane = scale.planes(at, grey.shape)[0]
    show_grey(axis, scale, plane, grey, grey_window(grey))
    turn_axes(axis, scale, plane, grey.shape)
    write_inside(axis, f"slice {plane.of_file}", 0.02, 0.98, 8.0)
    _mark(axis, scale.place(plane, at), "o", 12, colour)


def _mark(axis: Axes, place: tuple[float, float], marker: str, size: float, colour: str) -> None:
    axis.plot(*place, marker, markersize=size, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6,
              path_effects=halo(3.2))  # fmt: skip


def _draw_found(axis: Axes, match: Found, number: int, colour: str) -> None:
    at = match.points[number]
    _slice(axis, match.image, at, colour)
    if np.isfinite(match.truth[number]).all():
        scale = Scale.of(match.image, at)
        plane = scale.planes(at, match.image.values.shape[1:])[0]
        _mark(axis, scale.place(plane, match.truth[number]), "x", 5.5, "white")
        said = [f"error {match.errors[number]:.1f} mm", f"truth {_position(match.image, match.truth[number])}"]
    else:
        said = [f"similarity {match.similarity[number]:.2f}"]
    _title(axis, said[0], f"found {_position(match.image, at)}", *said[1:])


def _legend(figure: Figure, with_truth: bool) -> None:
    from matplotlib.lines import Line2D

    ring = Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black")
    cross = Line2D([], [], linestyle="", marker="x", markersize=8, markeredgecolor="black")
    marks, texts = [ring], ["landmark (first row), and its match"]
    if with_truth:
        marks.append(cross)
        texts.append("place by the labels (projected onto the slice)")
    figure.legend(marks, texts, loc="outside lower center", ncols=2, fontsize=9, frameon=False)

"""Landmarks of one image, found in other ones by their features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.errors import UserError
from nnssl.figures.canvas import check_output, save_numbers
from nnssl.figures.features import FeatureSource, Floats, body_of, body_voxels, comparable, open_features
from nnssl.figures.labels import LabelVolume, label_file, label_names, names_of, read_labels
from nnssl.matching.encode import EncodedImage
from nnssl.matching.images import PreparedImage
from nnssl.matching.match import distance_back, match_points
from nnssl.matching.run import locate

log = logging.getLogger("nnssl")
_VOXELS = 3_000  # of the body, whose mean feature is subtracted
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_SHOWN = 6  # landmarks in a picture, at most


@dataclass(frozen=True)
class Landmarks:
    """Named points of an image: (N, 3) voxels (z, y, x) of its grid, NaN where the image does not have one."""

    names: tuple[str, ...]
    points: Floats


@dataclass(frozen=True)
class Found:
    """Landmarks that were found in an image.

    Args:
        image: the one that was searched.
        points: (N, 3) voxels of its grid.
        truth: (N, 3) where they are by its labels; NaN where that is not known.
        errors: (N,) mm between both.
        similarity: (N,) mean cosine of the features, -1 to 1.
        back: (N,) mm between the landmark and where the match lands if it is searched in the first image.
    """

    image: PreparedImage
    points: Floats
    truth: Floats
    errors: Floats
    similarity: Floats
    back: Floats


def centres_of_labels(labels: LabelVolume, names: dict[int, str]) -> Landmarks:
    """Centres of mass of labels as landmarks; NaN for labels that do not occur, or whose centre was cropped away."""
    points = np.full((len(names), 3), np.nan)
    for number, value in enumerate(names):
        centre = labels.centre(value)
        if centre is not None:
            at = labels.geometry.world_to_grid(centre)
            if labels.geometry.inside(at):
                points[number] = at
    return Landmarks(tuple(names.values()), points)


def find_landmarks(
    query: EncodedImage, key: EncodedImage, asked: PreparedImage, searched: PreparedImage, points: Floats, truth: Floats
) -> Found:
    """Find landmarks of one image in another one.

    Args:
        query: encoded image that has the landmarks.
        key: encoded image that is searched.
        asked: this image.
        searched: this image.
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
    device: str = "cpu",
) -> list[Found]:
    """Find landmarks of an image in other ones, and draw both side by side.

    Landmarks are the centres of mass of the image's labels, or given points. Where the other images have labels too,
    the error is the distance to the centre of mass of the same label. The picture shows six of them at most: those
    whose labels are the smallest, or the first ones that are given or chosen; the numbers (.json) hold all.

    Args:
        model: run folder or checkpoint of any method; encodings of `lapn` and `sam` are trained for this.
        image: raw image with the landmarks, see `nnssl.matching.images.channel_files`.
        keys: raw images that are searched.
        output: the PNG.
        points: (x, y, z) in mm of the world, or voxels of the file; none: the labels.
        voxel: whether points are in voxels.
        ras: whether their millimetres are RAS instead of LPS.
        labels: folder of the label files; None for `labelsTr` beside `imagesTr`.
        chosen: names or values of the labels; none for all.
        level: see `nnssl.figures.features.open_features`.
        seed: of the voxels whose mean feature is subtracted.
        device: `cpu` or `cuda`.

    Raises:
        UserError: a file is missing or cannot be used, a point is not in the image, or there are no landmarks.
    """
    from nnssl.figures.matches_picture import draw_matches

    file = check_output(output)
    source = open_features(model, level, device)
    asked = source.prepare(image)
    names: dict[int, str] = {}
    if points:
        turn = _LPS_TO_RAS if ras else np.ones(3)
        places = np.stack([locate(asked, point, voxel, turn) for point in points])
        landmarks = Landmarks(tuple(f"point {n + 1}" for n in range(len(places))), places)
    else:
        landmarks, names = _landmarks(source, asked, image, labels, chosen)
    voxels = body_voxels(body_of(asked), _VOXELS, np.random.default_rng(seed))
    query = source.encode(asked)
    found = []
    for other in keys:
        searched = source.prepare(other)
        encoded, key = comparable(source, voxels, query, source.encode(searched))
        truth = np.full_like(landmarks.points, np.nan)
        if names:
            truth = _truth(source, searched, other, labels, names)
        found.append(find_landmarks(encoded, key, asked, searched, landmarks.points, truth))
    save_numbers(_numbers(source, asked, landmarks, found), file)
    draw_matches(asked, landmarks, found, list(range(min(_SHOWN, len(landmarks.names)))), source.title, file)
    return found


def _landmarks(
    source: FeatureSource, image: PreparedImage, path: str | Path, labels: str | Path | None, chosen: Sequence[str]
) -> tuple[Landmarks, dict[int, str]]:
    """Landmarks of the image's labels that occur there; the smallest labels first where none are chosen."""
    file = label_file(path, labels, source.model.dataset_json["file_ending"])
    volume = read_labels(file, image.geometry)
    names = names_of([volume], label_names(file, chosen))
    if not chosen:
        names = dict(sorted(names.items(), key=lambda item: volume.count(item[0])))
    landmarks = centres_of_labels(volume, names)
    there = [bool(np.isfinite(point).all()) for point in landmarks.points]
    names = {value: name for (value, name), is_there in zip(names.items(), there, strict=True) if is_there}
    if not names:
        raise UserError(f"{file} has none of the labels; give another image, or points with -p")
    return Landmarks(tuple(names.values()), landmarks.points[there]), names


def _truth(
    source: FeatureSource, image: PreparedImage, path: str | Path, labels: str | Path | None, names: dict[int, str]
) -> Floats:
    """Where the landmarks of another image are; NaN where it has no label file."""
    try:
        file = label_file(path, labels, source.model.dataset_json["file_ending"])
    except UserError as missing:
        log.info(f"no errors in mm for {image.name}: {missing}")
        return np.full((len(names), 3), np.nan)
    return centres_of_labels(read_labels(file, image.geometry), names).points


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

"""Landmarks of one image, found in others by their features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.analysis.matches_page import Found, draw_matches
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
from nnssl.core.figures import check_output, save_numbers
from nnssl.features.geometry import Floats
from nnssl.features.images import PreparedImage
from nnssl.features.match import comparable, distance_back, match_points
from nnssl.features.model import FeatureSource, open_features
from nnssl.features.tiles import EncodedImage

log = logging.getLogger("nnssl")
_VOXELS = 3_000  # of the body, for the mean feature to subtract


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
    draw_matches(asked, landmarks, found, source.title, file, ras)
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

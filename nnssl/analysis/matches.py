"""Landmarks of one image, found in other ones by their features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.analysis.canvas import check_output, save_numbers
from nnssl.analysis.features import FeatureSource, Floats, body_of, body_voxels, comparable, generator, open_features
from nnssl.analysis.labels import LEFT, RIGHT, LabelVolume, label_file, label_names, names_of, read_labels
from nnssl.analysis.match import locate
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from nnssl.features.match import EncodedImage, distance_back, match_points

log = logging.getLogger("nnssl")
_VOXELS = 3_000  # of the body, whose mean feature is subtracted
_SHOWN = 6  # landmarks in a picture, at most


Source = tuple[int, str]  # of a landmark: a label's value, and which of `LabelVolume.centres`


@dataclass(frozen=True)
class Landmarks:
    """Named points of an image.

    Args:
        names: for the reader.
        points: (N, 3) voxels (z, y, x) of the image's grid.
        sources: what they are by the labels; none of given points.
    """

    names: tuple[str, ...]
    points: Floats
    sources: tuple[Source, ...] = ()


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


def centres_of_labels(labels: LabelVolume, names: Mapping[int, str]) -> Landmarks:
    """Centres of mass of labels as landmarks, of both halves where a label lies on both sides.

    Labels that do not occur, and centres that were cropped away, are left out.
    """
    found: list[tuple[str, Floats, Source]] = []
    for value, name in names.items():
        centres = labels.centres(value)
        for side in (LEFT, RIGHT) if LEFT in centres else centres:
            at = labels.geometry.world_to_grid(centres[side])
            if labels.geometry.inside(at):
                found.append((f"{name} ({side})" if side else name, at, (value, side)))
    points = np.array([at for _, at, _ in found]).reshape(-1, 3)
    return Landmarks(tuple(name for name, _, _ in found), points, tuple(source for _, _, source in found))


def places_of(labels: LabelVolume, sources: Sequence[Source]) -> Floats:
    """(N, 3) voxels of an image's grid where landmarks of another one are; NaN where it does not have them."""
    centres = {value: labels.centres(value) for value, _ in sources}
    places = [centres[value].get(side, np.full(3, np.nan)) for value, side in sources]
    return labels.geometry.world_to_grid(np.array(places).reshape(-1, 3))


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
    allow_other_intensities: bool = False,
) -> list[Found]:
    """Find landmarks of an image in other ones, and draw both side by side.

    Landmarks are the centres of mass of the image's labels, or of their halves (see `LabelVolume.centres`), or given
    points. Where the other images have labels too, the error is the distance to the same centre of mass. The picture
    shows six of them at most: those whose labels are the smallest, or the first ones that are given or chosen; the
    numbers (.json) hold all.

    Args:
        model: run folder or checkpoint of any method; encodings of `lapn` and `sam` are trained for this.
        image: raw image with the landmarks, see `nnssl.features.images.channel_files`.
        keys: raw images that are searched.
        output: the PNG.
        points: (x, y, z) in mm of the world, or voxels of the file; none: the labels.
        voxel: whether points are in voxels.
        ras: whether their millimetres are RAS instead of LPS.
        labels: folder of the label files; None for `labelsTr` beside `imagesTr`.
        chosen: names or values of the labels; none for all.
        level: see `nnssl.analysis.features.open_features`.
        seed: of the voxels whose mean feature is subtracted.
        device: `cpu` or `cuda`.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, an image is of another modality, a point is not in the image,
            or there are no landmarks.
    """
    from nnssl.analysis.matches_picture import draw_matches

    file = check_output(output)
    source = open_features(model, level, device, [image, *keys], allow_other_intensities)
    asked = source.prepare(image)
    if points:
        places = np.stack([locate(asked, point, voxel, ras) for point in points])
        landmarks = Landmarks(tuple(f"point {n + 1}" for n in range(len(places))), places)
    else:
        landmarks = _landmarks(source, asked, image, labels, chosen)
    voxels = body_voxels(body_of(asked), _VOXELS, generator(seed))
    query = source.encode(asked)
    found = []
    for other in keys:
        searched = source.prepare(other)
        encoded, key = comparable(source, voxels, query, source.encode(searched))
        truth = _truth(source, searched, other, labels, landmarks)
        found.append(find_landmarks(encoded, key, asked, searched, landmarks.points, truth))
    source.guard.report()
    save_numbers(_numbers(source, asked, landmarks, found), file)
    draw_matches(asked, landmarks, found, list(range(min(_SHOWN, len(landmarks.names)))), source.title, file)
    return found


def _landmarks(
    source: FeatureSource, image: PreparedImage, path: str | Path, labels: str | Path | None, chosen: Sequence[str]
) -> Landmarks:
    """Landmarks of the image's labels that occur there; the smallest labels first where none are chosen."""
    file = label_file(path, labels, source.model.dataset_json["file_ending"])
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
        file = label_file(path, labels, source.model.dataset_json["file_ending"])
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

"""Error of point matching in mm: centroids of labels, from every subject to every other; no label was trained on.

    python benchmarks/matching.py -m RUN -images imagesTs -labels labelsTs
    python benchmarks/matching.py -m RUN -images imagesTs -labels labelsTs -cached    (as Alice pairs volumes)

RUN is the folder of a pretraining with `sam` or `lapn`. The yardstick is the same relative position in the box of what
is not air: of the volume as nnU-Net crops and preprocesses it, without its lowest values.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from nnssl.finetuning.pixel_encoder import read_pixel_encoder
from nnssl.matching.embeddings import PooledEncoder
from nnssl.matching.images import PreparedImage, prepare_image
from nnssl.matching.match import match_points
from nnssl.matching.run import checkpoint_of, encode
from nnssl.networks.build import resolve_configuration

Floats = NDArray[np.float64]
Landmark = tuple[int, int | None]  # label, and which of two parts along x


def main() -> None:
    """Print the median error of every label and of all, for matching and for the relative position."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", required=True, type=Path, dest="run")
    parser.add_argument("-images", required=True, type=Path)
    parser.add_argument("-labels", required=True, type=Path)
    parser.add_argument("-cached", action="store_true", help="in the larger cells of the encodings that Alice caches")
    arguments = parser.parse_args()
    encoder = read_pixel_encoder(checkpoint_of(arguments.run))
    if arguments.cached:
        spacing = resolve_configuration(encoder.plans, encoder.configuration)["spacing"]
        encoder = replace(encoder, encoder=PooledEncoder(encoder.encoder, spacing))
    ending = encoder.dataset_json["file_ending"]
    cases = sorted(file.name.removesuffix(ending) for file in arguments.labels.glob(f"*{ending}"))
    images = [prepare_image(arguments.images / c, encoder.plans, encoder.configuration, encoder.dataset_json)
              for c in cases]  # fmt: skip
    landmarks = [centroids(arguments.labels / f"{c}{ending}", image) for c, image in zip(cases, images, strict=True)]
    encoded = [encode(encoder, image) for image in images]
    errors: dict[Landmark, list[tuple[float, float]]] = {}
    for a, b in permutations(range(len(cases)), 2):
        labels = [mark for mark in landmarks[a] if mark in landmarks[b]]
        points, truth = (np.array([marks[mark] for mark in labels]) for marks in (landmarks[a], landmarks[b]))
        found = match_points(encoded[a], encoded[b], points).points
        guess = same_relative_position(points, images[a], images[b])
        spacing = images[b].geometry.spacing
        for landmark, *places in zip(labels, truth, found, guess, strict=True):
            matched, relative = (float(np.linalg.norm((place - places[0]) * spacing)) for place in places[1:])
            errors.setdefault(landmark, []).append((matched, relative))
    print(
        f"{len(cases)} subjects, {len(cases) * (len(cases) - 1)} pairs: median error in mm, {encoder.method}, relative"
    )
    for (label, side), pairs in errors.items():
        name = str(label) if side is None else f"{label} part {side + 1}"
        print(f"label {name:9s}  {np.median(pairs, axis=0)[0]:6.1f}  {np.median(pairs, axis=0)[1]:6.1f}")
    everything = np.median([pair for pairs in errors.values() for pair in pairs], axis=0)
    print(f"all        {everything[0]:6.1f}  {everything[1]:6.1f}")


def centroids(file: Path, image: PreparedImage) -> dict[Landmark, Floats]:
    """Centroids in voxels (z, y, x) of the preprocessed image, of both halves of what consists of two parts.

    The centroid of a pair of organs lies between them, where there may be anything.
    """
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    geometry, found = image.geometry, {}
    for number in (int(n) for n in np.unique(labels) if n > 0):
        parts, count = ndimage.label(labels == number)
        sizes = ndimage.sum_labels(parts > 0, parts, range(1, count + 1))
        large = [1 + i for i, size in enumerate(sizes) if size > 0.25 * sizes.sum()]
        means = sorted((np.argwhere(parts == i).mean(0)[::-1] for i in large), key=lambda mean: float(mean[0]))
        for side, mean in enumerate(means):
            found[number, side if len(means) > 1 else None] = geometry.world_to_grid(geometry.file_to_world(mean))
    return found


def same_relative_position(points: Floats, query: PreparedImage, key: PreparedImage) -> Floats:
    """The points' places relative to the query's box, in the key's box."""
    (first, extent), (other, stretch) = (box(image.values[0]) for image in (query, key))
    return other + (points - first) / extent * stretch


def box(values: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """First voxel and size of the box around all values above the lowest tenth of their range."""
    low, high = np.percentile(values, (0.5, 99.5))
    occupied = np.argwhere(values > low + 0.1 * (high - low))
    return occupied.min(0).astype(float), (occupied.max(0) - occupied.min(0) + 1).astype(float)


if __name__ == "__main__":
    main()

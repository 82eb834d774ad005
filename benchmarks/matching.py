"""Error of point matching in mm: centres of labels, from every subject to every other; no label was trained on.

    python benchmarks/matching.py -m RUN -images imagesTs -labels labelsTs
    python benchmarks/matching.py -m RUN -images imagesTs -labels labelsTs -cached    (as Alice pairs volumes)

RUN is the folder of a pretraining with `sam` or `lapn`. The yardstick is the same relative position in the box around
the body, which leaves out the lowest values of the preprocessed volume. Labels on both sides of the body are split, as
in `nnssl_visualize matches`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.points import centres_of_labels, label_names, names_of, places_of, read_labels
from nnssl.checkpoints.pretrained import read_pixel_encoder
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.features.images import PreparedImage, prepare_image
from nnssl.features.match import match_points
from nnssl.features.stored import PooledEncoder
from nnssl.features.tiles import encode_image
from nnssl.networks.build import resolve_configuration

Floats = NDArray[np.float64]


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
    images = [prepare_image(arguments.images / c, encoder)
              for c in cases]  # fmt: skip
    files = [arguments.labels / f"{case}{ending}" for case in cases]
    volumes = [read_labels(file, image.geometry) for file, image in zip(files, images, strict=True)]
    named = names_of(volumes, label_names(files[0]))
    landmarks = [centres_of_labels(volume, named) for volume in volumes]
    encoded = [encode_image(encoder.encoder, image.values, encoder.patch_size) for image in images]
    errors: dict[str, list[tuple[float, float]]] = {}
    for a, b in permutations(range(len(cases)), 2):
        points, truth = landmarks[a].points, places_of(volumes[b], landmarks[a].sources)
        found = match_points(encoded[a], encoded[b], points).points
        guess = same_relative_position(points, images[a], images[b])
        spacing = images[b].geometry.spacing
        for name, *places in zip(landmarks[a].names, truth, found, guess, strict=True):
            matched, relative = (float(np.linalg.norm((place - places[0]) * spacing)) for place in places[1:])
            if np.isfinite(matched):  # the other image has this landmark
                errors.setdefault(name, []).append((matched, relative))
    print(
        f"{len(cases)} subjects, {len(cases) * (len(cases) - 1)} pairs: median error in mm, {encoder.method}, relative"
    )
    width = max(map(len, errors))
    everything = [pair for of_landmark in errors.values() for pair in of_landmark]
    for name, pairs in [*errors.items(), ("all", everything)]:
        matched, relative = np.median(pairs, axis=0)
        print(f"{name:{width}s}  {matched:6.1f}  {relative:6.1f}")


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

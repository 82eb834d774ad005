"""Features of labelled voxels in two dimensions, by t-SNE."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.planes import page, save_page
from nnssl.analysis.points import LabelVolume, generator, label_file, label_names, names_of, read_labels
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.core.errors import UserError
from nnssl.core.figures import COLOURS, check_output, save_numbers
from nnssl.core.files import replace_file
from nnssl.core.names import csv_table, picture
from nnssl.features.components import balanced_components
from nnssl.features.geometry import Floats
from nnssl.features.match import Vectors, read_vectors
from nnssl.features.model import FeatureSource, open_features

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("nnssl")
_COMPONENTS = 50  # that t-SNE starts from, as its authors do
_NEIGHBOURS = 10  # for the share of those with the same label
_MARKERS = "o^sDv"
_PALETTE = (*COLOURS[:-1], "#000000")  # Okabe and Ito's, with black for white


@dataclass(frozen=True)
class Scatter:
    """Numbers of a t-SNE figure.

    Args:
        places: (N, 2) of the voxels in the picture.
        labels: (N,) values of their labels.
        names: of the labels by value.
        images: (N,) number of each voxel's image.
        voxels: (N, 3) voxels (z, y, x) of the image's grid.
        neighbours: by label, share of the ten nearest voxels of OTHER images in feature space with the same label;
            of the labels that at least two images have.
        by_chance: by such label, share of the other images' voxels with the same label.
        of_random: as `neighbours`, by the same network with random weights; none where the model is that one.
    """

    places: Floats
    labels: NDArray[np.int64]
    names: dict[int, str]
    images: NDArray[np.int64]
    voxels: Floats
    neighbours: dict[int, float]
    by_chance: dict[int, float] = field(default_factory=dict)
    of_random: dict[int, float] = field(default_factory=dict)

    @property
    def score(self) -> str:
        """The three numbers in a sentence; without a label that two images have, why there are none."""
        if not self.neighbours:
            few = "there is one" if len(np.unique(self.images)) < 2 else "no label is in two of them"
            return f"no score: neighbours are counted between images, and {few}; give two or more with -i"
        said = [f"{_mean(self.neighbours):.0%} of the {_NEIGHBOURS} nearest voxels in other images have the same label"]
        said += [f"random weights {_mean(self.of_random):.0%}"] if self.of_random else []
        return "; ".join([*said, f"chance {_mean(self.by_chance):.0%}"])


def _mean(shares: Mapping[int, float]) -> float:
    """Over the labels, each of which counts the same."""
    return float(np.mean(list(shares.values())))


def draw_voxels(
    labels: LabelVolume, values: Sequence[int], per_label: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """Draw voxels of the image's grid from each label: (N, 3), and (N,) their labels.

    A label gives `per_label` different voxels of its file, or all it has; what nnU-Net cropped away is left out.
    """
    points, drawn = [np.zeros((0, 3))], [np.zeros(0, dtype=np.int64)]
    geometry = labels.geometry
    for value in values:
        inside = np.flatnonzero(labels.values == value)
        chosen = rng.choice(inside, min(per_label, len(inside)), replace=False)
        files = np.stack(np.unravel_index(chosen, labels.values.shape), axis=1)
        at = geometry.world_to_grid(geometry.file_to_world(files))
        at = at[geometry.inside(at)]
        points.append(at)
        drawn.append(np.full(len(at), value))
    return np.concatenate(points), np.concatenate(drawn)


def same_neighbours(
    vectors: Floats, labels: NDArray[np.int64], images: NDArray[np.int64], count: int = _NEIGHBOURS
) -> dict[int, float]:
    """By label, share of the nearest vectors of other images with the same label: 1 where labels are apart.

    Voxels of the same image do not count: neighbours there say that features are smooth, and not that they are alike in
    two patients.

    Args:
        vectors: (N, D).
        labels: (N,).
        images: (N,) number of each vector's image; labels of a single one have no result.
        count: of nearest vectors, or all of the other images where there are fewer.
    """
    from sklearn.neighbors import NearestNeighbors

    same = np.zeros(len(labels))
    for others, own in _turns(images):
        nearest = NearestNeighbors(n_neighbors=min(count, int(others.sum()))).fit(vectors[others])
        found = nearest.kneighbors(vectors[own], return_distance=False)
        same[own] = (labels[others][found] == labels[own, None]).mean(1)
    return _by_label(same, labels, images)


def shares_by_chance(labels: NDArray[np.int64], images: NDArray[np.int64]) -> dict[int, float]:
    """What `same_neighbours` is for vectors that say nothing: the label's share of the other images' voxels."""
    same = np.zeros(len(labels))
    for others, own in _turns(images):
        same[own] = (labels[others] == labels[own, None]).mean(1)
    return _by_label(same, labels, images)


def _turns(images: NDArray[np.int64]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """For each image, which voxels are of the others and which are its own; none for a single image."""
    numbers = np.unique(images)
    return [(images != number, images == number) for number in numbers] if len(numbers) > 1 else []


def _by_label(same: Floats, labels: NDArray[np.int64], images: NDArray[np.int64]) -> dict[int, float]:
    """Means of the labels that two images have: others have no neighbour to find."""
    shared = [value for value in np.unique(labels) if len(np.unique(images[labels == value])) > 1]
    return {int(value): float(same[labels == value].mean()) for value in shared}


def embed_in_plane(vectors: Floats, perplexity: float, seed: int) -> Floats:
    """(N, 2) places of vectors (N, D) by t-SNE; the same seed gives the same places.

    Args:
        vectors: balanced.
        perplexity: about the number of neighbours that count; smaller for few vectors.
        seed: of the optimisation.
    """
    from sklearn.manifold import TSNE

    tsne = TSNE(2, perplexity=min(perplexity, (len(vectors) - 1) / 3), init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(vectors.astype(np.float32)), dtype=np.float64)


def reduce(vectors: Vectors) -> Floats:
    """(N, at most 50) principal components of balanced vectors (N, d) by name."""
    return balanced_components(vectors, min(_COMPONENTS, sum(part.shape[1] for part in vectors.values())))(vectors)


def visualize_tsne(
    model: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    labels: str | Path | None = None,
    chosen: Sequence[str] = (),
    per_label: int = 200,
    perplexity: float = 30.0,
    level: int | None = None,
    seed: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Scatter:
    """Draw features of labelled voxels of one or more images in two dimensions, coloured by label.

    Written: the picture; beside it its numbers (.json) and the voxels with their places (.csv).

    Args:
        model: RUN of any method, see `nnssl.features.model.open_features`.
        images: raw images, see `nnssl.features.cases.channel_files`.
        output: the PNG.
        labels: folder of the label files, or the one of the only image; None for `labelsTr` beside `imagesTr`.
        chosen: names or values of the labels; none for all.
        per_label: voxels of each label, over all images.
        perplexity: of t-SNE.
        level: of the feature pyramid; None as for `open_features`.
        seed: of the voxels and of t-SNE.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: a file is missing or cannot be used, an image is of another modality, or fewer than 8 labelled voxels
            are found.
    """
    file = check_output(output, ".csv")
    if per_label < 2 or not 0 < perplexity < math.inf:
        raise UserError("--per_label must be at least 2 and --perplexity a finite number above 0")
    source = open_features(model, level, device, images, allow_other_intensities)
    sources = [source]
    if len(images) > 1 and not str(model).startswith(f"{RANDOM}:"):
        sources.append(open_features(f"{RANDOM}:{model}", level, device))
    rows, names, cases = _read_labelled(sources, images, labels, chosen, -(-per_label // len(images)), generator(seed))
    points, values, which = (np.concatenate([row[i] for row in rows]) for i in (1, 2, 3))
    if len(points) < 8:
        raise UserError(f"only {len(points)} labelled voxels were found in {', '.join(cases)}; give images with labels")
    reduced = [
        reduce({name: np.concatenate([row[0][n][name] for row in rows]) for name in rows[0][0][n]})
        for n in range(len(sources))
    ]
    names = {value: name for value, name in names.items() if (values == value).any()}
    shares = [same_neighbours(vectors, values, which) for vectors in reduced]
    scatter = Scatter(embed_in_plane(reduced[0], perplexity, seed), values, names, which, points,
                      shares[0], shares_by_chance(values, which), *shares[1:])  # fmt: skip
    _save(scatter, source.title, cases, file)
    named_cases = ", ".join(cases) if len(cases) < 6 else f"{len(cases)} images"
    log.info(f"{source.title}: {scatter.score}")
    _draw(scatter, f"t-SNE of voxel features ({source.title})\n{named_cases}", file)
    return scatter


Rows = list[tuple[list[Vectors], Floats, NDArray[np.int64], NDArray[np.int64]]]


def _read_labelled(
    sources: Sequence[FeatureSource],
    images: Sequence[str | Path],
    labels: str | Path | None,
    chosen: Sequence[str],
    share: int,
    rng: np.random.Generator,
) -> tuple[Rows, dict[int, str], list[str]]:
    """Of every image vectors by each source, points, labels and its number; the names of the labels and the images."""
    source = sources[0]
    ending = source.origin.dataset_json["file_ending"]
    files = [label_file(image, labels, ending) for image in images]
    named = label_names(files[0], chosen)
    names, cases = dict(named), []
    rows: Rows = []
    for number, (prepared, labelled) in enumerate(zip(source.images.prepare(images), files, strict=True)):
        volume = read_labels(labelled, prepared.geometry)
        names |= names_of([volume], named)
        points, values = draw_voxels(volume, sorted(names), share, rng)
        vectors = [read_vectors(each.encode(prepared), points) for each in sources]
        rows.append((vectors, points, values, np.full(len(points), number)))
        cases.append(prepared.name)
    return rows, names, cases


def _save(scatter: Scatter, features: str, cases: Sequence[str], file: Path) -> None:
    numbers: dict[str, Any] = {
        "features": features,
        "images": list(cases),
        "voxels": {name: int((scatter.labels == value).sum()) for value, name in scatter.names.items()},
        "share_of_nearest_neighbours_with_the_same_label": _named(scatter.neighbours, scatter.names),
        "share_with_random_weights": _named(scatter.of_random, scatter.names),
        "share_by_chance_of_each_label": _named(scatter.by_chance, scatter.names),
        "mean_share": _mean(scatter.neighbours) if scatter.neighbours else None,
        "mean_share_with_random_weights": _mean(scatter.of_random) if scatter.of_random else None,
        "share_by_chance": _mean(scatter.by_chance) if scatter.by_chance else None,
    }
    save_numbers(numbers, file)
    voxels = zip(scatter.images, scatter.labels, scatter.voxels, scatter.places, strict=True)
    rows = [
        [cases[which], scatter.names[int(value)], *(f"{v:.1f}" for v in voxel), *(f"{p:.4f}" for p in place)]
        for which, value, voxel, place in voxels
    ]
    table = csv_table(["image", "label", "z", "y", "x", "place_1", "place_2"], rows)
    replace_file(file.with_suffix(".csv"), table.encode())


def _named(shares: Mapping[int, float], names: Mapping[int, str]) -> dict[str, float]:
    return {name: shares[value] for value, name in names.items() if value in shares}


def _draw(scatter: Scatter, heading: str, file: Path) -> None:
    figure = page(6.8, f"{heading}\n{scatter.score}")
    axis = figure.subplots()
    draw_scatter(axis, scatter.places, scatter.labels, scatter.names, scatter.neighbours)
    axis.set_xlabel("t-SNE 1 (no unit)")
    axis.set_ylabel("t-SNE 2 (no unit)")
    axis.set_aspect("equal", adjustable="datalim")
    title = "label (share of neighbours\nwith the same label)" if scatter.neighbours else "label"
    legend = figure.legend(loc="outside right center", fontsize=9, markerscale=2, frameon=False, title=title)
    legend.get_title().set_fontsize(9)
    save_page(figure, file)


def draw_scatter(
    axis: Axes, places: Floats, labels: NDArray[np.int64], names: Mapping[int, str], shares: Mapping[int, float]
) -> None:
    """Draw points (N, 2) by label, each with a colour and a marker of its own."""
    for number, (value, name) in enumerate(sorted(names.items())):
        of_label = labels == value
        colour, turn = _PALETTE[number % len(_PALETTE)], number + number // len(_PALETTE)
        x, y = places[of_label].T
        said = picture(name).replace("_", " ") + (f" ({shares[value]:.0%})" if value in shares else "")
        axis.scatter(x, y, s=16, color=colour, marker=_MARKERS[turn % len(_MARKERS)],
                     alpha=0.8, linewidths=0.3, edgecolors="0.3", label=said)  # fmt: skip

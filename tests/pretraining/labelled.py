"""A small labelled dataset for probes: bright boxes and balls in noise, as preprocessed volumes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.setup import Setup
from tests.runs import make_setup
from tests.volumes import add_volume, make_folder

SIZE = (16, 24, 24)
LABELS = {"box": (1,), "slab": (2,)}


def labelled_volume(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, Z, Y, X) and labels (Z, Y, X): a bright box, 1, and a dark slab, 2, somewhere in noise."""
    labels = np.zeros(SIZE, dtype=np.int16)
    z, y, x = (int(rng.integers(1, size - 9)) for size in SIZE)
    labels[z : z + 8, y : y + 8, x : x + 8] = 1
    labels[:, :, 21:] = 2
    image = np.choose(labels, (0.4, 0.9, 0.1)) + 0.05 * rng.standard_normal(SIZE)
    return image[None].astype(np.float32), labels


def add_labels(images: Path, case: str, labels: np.ndarray) -> None:
    """Write what nnU-Net's preprocessing leaves of a label map."""
    blosc2.asarray(np.ascontiguousarray(labels[None]), urlpath=str(images / f"{case}_seg.b2nd"), mode="w")
    places = {int(v): np.insert(np.argwhere(labels == v), 0, 0, axis=1) for v in np.unique(labels) if v > 0}
    (images / f"{case}.pkl").write_bytes(pickle.dumps({"class_locations": places}))


def make_probe(root: Path, cases: int = 4, held_out: int = 1, **options: Any) -> ProbeData:
    """A dataset of labelled volumes."""
    folder = make_folder(root / "probe", name="Dataset017_Boxes")
    for i in range(cases):
        image, labels = labelled_volume(np.random.default_rng((17, i)))
        add_volume(folder, f"box_{i}", image)
        add_labels(folder.images, f"box_{i}", labels)
    names = folder.cases()
    return ProbeData(folder, tuple(names[:-held_out]), tuple(names[-held_out:]), LABELS, **options)


def probed_setup(root: Path, method: str = "vox2vec", every: int | None = 1, **options: Any) -> Setup:
    """A small run with a probe."""
    return replace(make_setup(root, method, **options), probe=make_probe(root, every=every))

"""Where the crops of a run are in their volumes: how much they overlap, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box, Integers
from nnssl.data.loader import reading
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Batch, Method, MethodConfig
from nnssl.methods.panel import Panel
from nnssl.methods.registry import get_method
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.pretraining.setup import Setup

MOST_OVERLAP = 0.7  # mean; beyond it both views show nearly the same, and agree without anything being learned
_SAMPLES = 64  # the deviation of their mean is a few hundredths
_SHOWN = 4  # volumes of the overview
_GREY = (1.0, 99.5)  # percentiles of a slice that are black and white

Floats = NDArray[np.float64]


def shared_part(boxes: Floats, size: Integers) -> Floats:
    """What any two crops of a volume have in common, as a mean part of both; padding does not count.

    Args:
        boxes: (K, 2, 3) first voxels and ends.
        size: (3,) voxels of the volume.

    Returns:
        (K (K - 1) / 2,) in [0, 1].
    """
    inside = np.clip(boxes, 0, size)
    i, j = np.triu_indices(len(boxes), 1)
    sides = np.minimum(inside[i, 1], inside[j, 1]) - np.maximum(inside[i, 0], inside[j, 0])
    common, whole = np.maximum(sides, 0).prod(-1), (inside[:, 1] - inside[:, 0]).prod(-1)
    return np.asarray((common / whole[i] + common / whole[j]) / 2)


def overlap_warning(setup: Setup) -> str | None:
    """What to say of a run whose crops of one volume overlap too much.

    Returns:
        A sentence with the mean overlap and a smaller patch; None where crops differ enough, or where the method
        compares no crops of one volume.
    """
    found = _mean_overlap(setup, setup.config)
    if found is None or found[0] <= MOST_OVERLAP:
        return None
    mean, size = found
    said = (f"two crops of {_times(setup.config.patch)} overlap by {mean:.2f} on average in volumes of {_times(size)}: "
            f"the more both show the same, the less there is to learn")  # fmt: skip
    with torch.device("meta"):
        backbone = setup.build_method().backbone
    smaller = _smaller(setup, backbone, size)
    other = None if smaller is None else _mean_overlap(setup, smaller)
    if smaller is None or other is None or other[0] > MOST_OVERLAP:
        return f"{said}; take larger volumes, or a method that compares no crops of one volume (-m mae)"
    return f"{said}; with -o patch_size={','.join(map(str, smaller.patch))} they overlap by {other[0]:.2f}"


def _mean_overlap(setup: Setup, config: MethodConfig) -> tuple[float, list[int]] | None:
    """Mean overlap of the crops that the method draws of the run's volumes, and the median size of these."""
    method, cases = get_method(setup.method), setup.train
    if method.pairs_volumes:
        return None
    parts, sizes = [], []
    order = np.random.default_rng(config.seed).permutation(len(cases))
    for number in range(_SAMPLES):
        index = int(order[number % len(cases)])
        folder, case = cases.folders[cases.folder_of[index]], str(cases.names[index])
        try:
            with reading(folder, case):
                volume = _Outline(folder.open(case, index))
                sample = method.sample(volume, config, np.random.default_rng([config.seed, number]))
        except UserError:  # the training stops at this volume and says why
            continue
        boxes = method.crop_boxes(method.collate([sample]), config)
        if boxes is None or boxes.shape[1] < 2:
            return None
        sizes.append(volume.size)
        parts.append(shared_part(boxes[0].numpy(), volume.size).mean())
    return (float(np.mean(parts)), np.median(sizes, axis=0).astype(int).tolist()) if parts else None


class _Outline:
    """A volume whose voxels are not read: where crops are does not depend on them."""

    def __init__(self, volume: BloscVolume) -> None:
        self._volume = volume
        self.index, self.spacing, self.size = volume.index, volume.spacing, volume.size
        self.hu_affine, self.is_ct = volume.hu_affine, volume.is_ct
        self.random_body_voxel = volume.random_body_voxel
        self.match, self.read_resized_body = volume.match, volume.read_resized_body

    @property
    def body_box(self) -> Box:
        """As of the volume."""
        return self._volume.body_box

    def read(self, start: Integers, stop: Integers) -> NDArray[np.float32]:
        """Zeros in place of values."""
        return np.zeros((len(self.is_ct), *(stop - start)), dtype=np.float32)

    def read_body(self, start: Integers, stop: Integers) -> NDArray[np.bool_]:
        """No body: no matched points are drawn."""
        return np.zeros(tuple(stop - start), dtype=bool)


def _smaller(setup: Setup, backbone: FeaturePyramid, size: Sequence[int]) -> MethodConfig | None:
    """The options with a patch of at most half of a volume on each axis; None where the network does not take it."""
    half = [max(n // 2 // d * d, d) for n, d in zip(size, backbone.divisor, strict=True)]
    z, y, x = (min(p, h) for p, h in zip(setup.config.patch, half, strict=True))
    smaller = replace(setup.config, patch_size=(z, y, x))
    try:
        get_method(setup.method).check(smaller, backbone)
    except UserError:
        return None
    return smaller if smaller.patch != setup.config.patch else None


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def overviews(setup: Setup, method: type[Method], batch: Batch, cases: Sequence[str]) -> list[Panel]:
    """Where the crops of a batch are in their volumes: a slice of each of the first volumes with its crops as boxes.

    Args:
        setup: of the run.
        method: of the run.
        batch: on the CPU, augmented or not.
        cases: label of each sample's volume.
    """
    boxes = method.crop_boxes(batch, setup.config)
    if boxes is None:
        return []
    folders, shown = (*setup.train.folders, *setup.val.folders), []
    for case, own in list(zip(cases, boxes.numpy(), strict=False))[:_SHOWN]:
        dataset, name = case.split("/", 1)
        folder = next(f for f in folders if f.name == dataset and (f.images / f"{name}.b2nd").is_file())
        axes = setup.plans.get("transpose_forward", [0, 1, 2])
        letters = "" if setup.orientation is None else "".join(setup.orientation[2 - axis] for axis in axes)
        with reading(folder, name):
            shown.append(overview(own, folder.open(name), letters, name))
    return shown


def overview(boxes: Floats, volume: BloscVolume, letters: str, title: str) -> Panel:
    """The coronal slice through the middle of the first crop, with all crops as boxes.

    Args:
        boxes: (K, 2, 3) first voxels and ends of the crops.
        volume: that they are of.
        letters: direction of its axes, such as SPL; none where unknown: the slice across the second axis then.
        title: of the picture.
    """
    size = np.asarray(volume.size)
    depth = next((axis for axis, letter in enumerate(letters) if letter in "AP"), 1)
    rows, columns = sorted({0, 1, 2} - {depth}, key=lambda axis: (letters[axis : axis + 1] not in ("S", "I"), axis))
    middle = int(np.clip(boxes[0, :, depth].mean(), 0, size[depth] - 1))
    start, stop = np.zeros(3, dtype=np.int64), size.copy()
    start[depth], stop[depth] = middle, middle + 1
    image = volume.read(start, stop)[0].take(0, depth)
    image = image if rows < columns else image.T
    spans = boxes.copy()
    for axis, turned in ((rows, "S"), (columns, "R")):  # the head is up, and the patient's left on the right
        if letters[axis : axis + 1] == turned:
            image = np.flip(image, 0 if axis == rows else 1)
            spans[:, :, axis] = size[axis] - spans[:, ::-1, axis]
    sides = spans[:, 1] - spans[:, 0]
    framed = [
        (float(first[rows]), float(first[columns]), float(side[rows]), float(side[columns]))
        for first, side in zip(spans[:, 0], sides, strict=True)
    ]
    low, high = np.percentile(image, _GREY)
    named = f"{title}, " + ("coronal slice" if letters else "slice across axis 2") + f" {middle}"
    pair = len(framed) <= 2
    return Panel(image, named, boxes=framed if pair else (), frames=() if pair else framed, values=(low, high),
                 aspect=volume.spacing[rows] / volume.spacing[columns])  # fmt: skip

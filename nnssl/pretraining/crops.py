"""How much the crops of a run overlap, and how much of them is outside of their volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box, Integers
from nnssl.data.loader import reading
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Match, MethodConfig
from nnssl.methods.registry import get_method
from nnssl.pretraining.setup import Setup

MOST_OVERLAP = 0.7  # mean; beyond it both views show nearly the same, and agree without anything being learned
MOST_PADDING = 0.5  # mean; nnU-Net's own plans leave a third of a patch empty in small volumes
_DRAWS = 48  # the deviation of their mean is a few hundredths

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


def outside_part(boxes: Floats, size: Integers) -> Floats:
    """Part (K,) of crops (K, 2, 3), first voxels and ends, that is outside of a volume of (3,) voxels."""
    inside = np.clip(boxes, 0, size)
    return np.asarray(1 - (inside[:, 1] - inside[:, 0]).prod(-1) / (boxes[:, 1] - boxes[:, 0]).prod(-1))


@dataclass(frozen=True)
class Draws:
    """Means over crops that the run's own sampler has drawn.

    Args:
        size: (3,) median of the volumes' sizes in voxels.
        overlap: part that two compared crops have in common; None where the method compares no crops of one volume.
        padding: part of a crop outside of its volume; None where crops are no boxes of the volume.
    """

    size: tuple[int, ...]
    overlap: float | None
    padding: float | None


def crop_warning(setup: Setup) -> str | None:
    """What to say of a run whose crops overlap too much, or show too little of a volume; no voxel is read for it.

    Returns:
        A sentence with the number, and an option that brings it down if there is one; None where all is well. A patch
        that mends the overlap is one that fits the volumes, so that the sentence on padding is left out then.
    """
    found = draw_crops(setup, setup.config)
    if found is None:
        return None
    patch = _times(setup.config.patch)
    if found.overlap is not None and found.overlap > MOST_OVERLAP:
        compared = "two crops" if get_method(setup.method).overlaps_key is None else "a crop and its nearest base"
        said = (f"{compared} of {patch} overlap by {found.overlap:.2f} on average in volumes of {_times(found.size)} "
                f"(limit {MOST_OVERLAP:g}): the more both show the same, the less there is to learn")  # fmt: skip
        return f"{said}; {_mended(setup, found.size, 2, 'overlap')}"
    if found.padding is not None and found.padding > MOST_PADDING:
        said = (f"{found.padding:.2f} of a crop of {patch} is outside of its volume on average, in volumes of "
                f"{_times(found.size)} (limit {MOST_PADDING:g}): the network sees more padding than "
                f"anatomy")  # fmt: skip
        return f"{said}; {_mended(setup, found.size, 1, 'padding')}"
    return None


def draw_crops(setup: Setup, config: MethodConfig) -> Draws | None:
    """Draw crops of the run's volumes with its own sampler; None where no volume can be opened, or nothing is known."""
    method, cases = get_method(setup.method), setup.train
    sizes, overlaps, paddings = [], [], []
    order = np.random.default_rng(config.seed).permutation(len(cases))
    for number in range(_DRAWS):
        index = int(order[number % len(cases)])
        folder, case = cases.folders[cases.folder_of[index]], str(cases.names[index])
        try:
            with reading(folder, case):
                volume = _Outline(folder.open(case, index))
                sample = method.sample(volume, config, np.random.default_rng([config.seed, number]))
        except UserError:  # the training stops at this volume and says why
            continue
        boxes = method.crop_boxes(method.collate([sample]), config)
        shared = None if method.overlaps_key is None else sample[method.overlaps_key].max(1)
        if boxes is None and shared is None:
            return None
        sizes.append(volume.size)
        if boxes is not None:
            of_volume = boxes[0].numpy()
            paddings.append(float(outside_part(of_volume, volume.size).mean()))
            shared = shared_part(of_volume, volume.size) if len(of_volume) > 1 else None
        if shared is not None:
            overlaps.append(float(shared.mean()))
    if not sizes:
        return None
    size = tuple(int(n) for n in np.median(sizes, axis=0))
    return Draws(size, *(float(np.mean(found)) if found else None for found in (overlaps, paddings)))


class _Outline:
    """A volume without channels, so that crops of it take no memory: where they are does not depend on the voxels."""

    def __init__(self, volume: BloscVolume) -> None:
        self._volume = volume
        self.index, self.spacing, self.size = volume.index, volume.spacing, volume.size
        self.hu_affine, self.is_ct = volume.hu_affine, volume.is_ct
        self.random_body_voxel = volume.random_body_voxel

    @property
    def body_box(self) -> Box:
        """As of the volume."""
        return self._volume.body_box

    def read(self, start: Integers, stop: Integers) -> NDArray[np.float32]:
        """No values."""
        return np.zeros((0, *(stop - start)), dtype=np.float32)

    def read_body(self, start: Integers, stop: Integers) -> NDArray[np.bool_]:
        """No body: no matched points are drawn."""
        return np.zeros(tuple(stop - start), dtype=bool)

    def read_resized_body(self, largest: tuple[int, int, int]) -> NDArray[np.float16]:
        """No values, of the body's size, which is at most `largest`."""
        start, stop = self.body_box
        return np.zeros((0, *np.minimum(stop - start, largest)), dtype=np.float16)

    def match(self, rng: np.random.Generator) -> Match:
        """A point of the volume and itself."""
        point = self.random_body_voxel(rng)
        return Match(point, self, point)


def _mended(setup: Setup, size: Sequence[int], parts: int, what: str) -> str:
    """What to type to bring a mean of `Draws` below its limit, as the end of a sentence."""
    compared, fix = what == "overlap", get_method(setup.method).overlap_fix
    if compared and fix:
        return fix
    smaller = _smaller(setup, size, parts)
    found = None if smaller is None else draw_crops(setup, smaller)
    value = None if found is None else found.overlap if compared else found.padding
    if smaller is None or value is None or value > (MOST_OVERLAP if compared else MOST_PADDING):
        other = ", or a method that compares no crops of one volume (-m mae)" if compared else ", or a finer spacing"
        return f"take larger volumes{other}"
    of_patch = f"with -o patch_size={','.join(map(str, smaller.patch))}"
    return f"{of_patch} they overlap by {value:.2f}" if compared else f"{of_patch} it is {value:.2f}"


def _smaller(setup: Setup, size: Sequence[int], parts: int) -> MethodConfig | None:
    """The options with a patch of at most a volume's part on each axis; None where the network does not take it."""
    with torch.device("meta"):
        backbone = setup.build_method().backbone
    most = [max(n // parts // d * d, d) for n, d in zip(size, backbone.divisor, strict=True)]
    z, y, x = (min(p, m) for p, m in zip(setup.config.patch, most, strict=True))
    smaller = replace(setup.config, patch_size=(z, y, x))
    try:
        get_method(setup.method).check(smaller, backbone)
    except UserError:
        return None
    return smaller if smaller.patch != setup.config.patch else None


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))

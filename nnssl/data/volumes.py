"""Reading preprocessed volumes: a folder's listing, a region of one volume, its body mask."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box, bounding_box
from nnssl.data.records import unused_cases
from nnssl.data.report import resolved_configuration, settings_digest
from nnssl.data.resized import resized_body, resized_folder, stored_body
from nnssl.data.storage import body_folder

if TYPE_CHECKING:  # it takes torch with it
    from nnssl.methods.base import Match

# vox2vec's intensity window, which stands for the whole range of a channel without Hounsfield units.
_RANGE_LOW, _RANGE_WIDTH = -1350.0, 2350.0


@dataclass(frozen=True)
class Channel:
    """Normalisation of one channel: the plans' scheme, and for CT the mean and deviation that it used."""

    scheme: str
    mean: float
    std: float

    @property
    def is_ct(self) -> bool:
        """Whether values are Hounsfield units (nnU-Net decides that by the channel's name)."""
        return self.scheme == "CTNormalization"


@dataclass(frozen=True)
class VolumeFolder:
    """A folder of preprocessed volumes, and what their values and axes mean.

    Args:
        name: the dataset, such as Dataset500_Thorax.
        images: nnU-Net's folder of `case.b2nd` (C, Z, Y, X) float32.
        bodies: folder of the body masks `case.b2nd` (Z, Y, X) uint8.
        spacing: millimetres along (Z, Y, X).
        channels: one entry a channel.
        settings: digest of the plans' `volume_settings`; None where volumes of any make will do.
        in_splits: whether splits_final.json lists its cases; cases without a label are not listed.
    """

    name: str
    images: Path
    bodies: Path
    spacing: tuple[float, float, float]
    channels: tuple[Channel, ...]
    settings: str | None = None
    in_splits: bool = True

    @classmethod
    def from_plans(cls, preprocessed: Path, name: str, plans: dict[str, Any], configuration: str) -> VolumeFolder:
        """Folder of a dataset under nnU-Net's preprocessed folder, as its plans describe it."""
        resolved = resolved_configuration(plans, configuration)
        properties = plans["foreground_intensity_properties_per_channel"]
        channels = tuple(
            Channel(scheme, float(properties[str(c)]["mean"]), max(float(properties[str(c)]["std"]), 1e-8))
            for c, scheme in enumerate(resolved.normalization_schemes)
        )
        images = preprocessed / name / resolved.data_identifier
        z, y, x = (float(s) for s in resolved.spacing)
        made_with = settings_digest(plans, configuration)
        return cls(name, images, images.with_name(images.name + "_body"), (z, y, x), channels, made_with)

    def cases(self) -> list[str]:
        """Identifiers that have an image and a body mask and may be used, sorted; no volume is opened.

        Not used are cases whose raw files are gone and volumes made with other plans (`nnssl.data.records`).
        """
        if not self.images.is_dir() or not self.bodies.is_dir():
            return []
        images = {e.name[:-5] for e in os.scandir(self.images) if e.name.endswith(".b2nd")}
        bodies = {e.name[:-5] for e in os.scandir(self.bodies) if e.name.endswith(".b2nd")}
        return sorted((images & bodies) - unused_cases(self.images, self.settings).keys())

    def open(self, case: str, index: int = 0, matcher: Matcher | None = None) -> BloscVolume:
        """One volume, opened for reading.

        Args:
            case: its name.
            index: its number among the volumes of the run.
            matcher: what `BloscVolume.match` asks.
        """
        return BloscVolume(self, case, index, matcher)


class BloscVolume:
    """One preprocessed case; a read decompresses only the blocks that the region touches (`Volume`)."""

    def __init__(self, folder: VolumeFolder, case: str, index: int, matcher: Matcher | None = None) -> None:
        self.folder, self.case, self.index, self.matcher = folder, case, index, matcher
        self.spacing = folder.spacing
        self._image = _open(folder.images / f"{case}.b2nd")
        self._body = _open(folder.bodies / f"{case}.b2nd")
        if tuple(self._image.shape[1:]) != tuple(self._body.shape):
            raise UserError(
                f"{folder.name}: the body mask of {case} does not fit its image (the dataset was preprocessed anew?); "
                f"delete {folder.bodies} and run nnssl_plan_and_preprocess again"
            )

    @property
    def size(self) -> np.ndarray:
        """Voxels along (Z, Y, X)."""
        return np.asarray(self._image.shape[1:])

    @property
    def look(self) -> tuple[Any, ...]:
        """What tells a volume from any other scan without reading voxels: its shape, values' range, and body slices."""
        meta = self._body.schunk.vlmeta
        ranges = tuple(map(tuple, meta["intensity_range"]))
        return (*self._image.shape, ranges, tuple(np.asarray(meta["slice_counts"]).tolist()))

    @cached_property
    def is_ct(self) -> np.ndarray:
        """(C,) bool: which channels are in Hounsfield units."""
        return np.array([c.is_ct for c in self.folder.channels])

    @cached_property
    def hu_affine(self) -> np.ndarray:
        """(C, 2) float32 offset and scale: offset + scale * value is in HU for CT.

        For other channels it maps the range of the case (0.5 and 99.5 percentile inside the body) to [-1350, 1000],
        so that a value in HU stands for the same fraction of the range.
        """
        rows = []
        for channel, (low, high) in zip(self.folder.channels, self._body.schunk.vlmeta["intensity_range"], strict=True):
            if channel.is_ct:
                rows.append((channel.mean, channel.std))
            else:
                scale = _RANGE_WIDTH / max(high - low, 1e-6)
                rows.append((_RANGE_LOW - scale * low, scale))
        return np.array(rows, dtype=np.float32)

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Box [start, stop) of the image as (C, *size) float32.

        Outside the volume it is 0: nnU-Net pads so in training and in prediction, in the units of the plans.
        """
        return _read(self._image, start, stop, np.float32)

    def read_body(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Box [start, stop) of the body mask as (*size,) bool; False outside the volume."""
        return _read(self._body, start, stop, np.uint8).astype(bool)

    @cached_property
    def body_box(self) -> Box:
        """The smallest box that holds the body; a mask that was stored without one is read as a whole."""
        meta = self._body.schunk.vlmeta
        if "body_box" in meta:
            start, stop = np.asarray(meta["body_box"], dtype=np.int64)
            return Box(start, stop)
        file = self.folder.bodies / f"{self.case}.b2nd"
        status = file.stat()
        return _box_of_mask(file, status.st_ino, status.st_mtime_ns)

    def read_resized_body(self, largest: tuple[int, int, int]) -> np.ndarray:
        """The body's box as (C, z, y, x) float16, resized on axes longer than `largest` (`nnssl.data.resized`).

        It is read from the file that a training has made beside the volumes; without one it is made here, in memory.

        Raises:
            UserError: the file was made of another volume, or is damaged.
        """
        stored = resized_folder(self.folder.images, largest)
        values = stored_body(self, body_folder(stored) / f"{self.case}.b2nd", largest)
        return resized_body(self, largest).values if values is None else values

    def read_labels(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Box [start, stop) of the label map as (*size,) int16, 0 outside; nnU-Net marks with -1 what it cut away."""
        labels: np.ndarray = _read(self._labels, start, stop, np.int16)[0]
        return labels

    @cached_property
    def _labels(self) -> Any:
        return _open(self.folder.images / f"{self.case}_seg.b2nd")

    def random_body_voxel(self, rng: np.random.Generator) -> np.ndarray:
        """A voxel (z, y, x), uniform over the body, from the stored counts and one slice of the mask."""
        counts = np.asarray(self._body.schunk.vlmeta["slice_counts"])
        n = int(rng.integers(counts.sum()))
        z = int(np.searchsorted(np.cumsum(counts), n, side="right"))
        slice_of_mask = _box(self._body, [z, 0, 0], [z + 1, *self._body.shape[1:]])[0]
        voxels = np.flatnonzero(slice_of_mask != 0)  # of bool: four times as fast as of uint8
        y, x = np.unravel_index(voxels[n - counts[:z].sum()], slice_of_mask.shape)
        return np.array([z, y, x])

    def match(self, rng: np.random.Generator) -> Match:
        """A random point of the body and the same place in another volume of the run.

        Raises:
            ValueError: the volume was opened without a matcher.
        """
        if self.matcher is None:
            raise ValueError("this volume was opened without a matcher")
        return self.matcher(self, rng)


Matcher: TypeAlias = "Callable[[BloscVolume, np.random.Generator], Match]"


@lru_cache(maxsize=100_000)
def _box_of_mask(file: Path, inode: int, time: int) -> Box:
    """The body's box in a mask file, which its inode and time (ns) tell from a later one of the same name."""
    return bounding_box(_open(file)[...] != 0)


def _open(path: Path) -> Any:
    import blosc2

    blosc2.set_nthreads(1)  # the loader's workers are the parallelism
    # blosc2 cannot map files into memory on Windows; nnU-Net makes the same exception
    mapping = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **mapping)


def _read(array: Any, start: np.ndarray, stop: np.ndarray, dtype: type) -> np.ndarray:
    """Box of the last three axes, zero where it leaves the array."""
    size = np.asarray(array.shape[-3:])
    inner_start, inner_stop = np.clip(start, 0, size), np.clip(stop, 0, size)
    channels = array.shape[:-3]
    first, last = [0] * len(channels) + inner_start.tolist(), [*channels, *inner_stop.tolist()]
    if np.array_equal(inner_start, start) and np.array_equal(inner_stop, stop):
        return np.asarray(_box(array, first, last), dtype=dtype)
    out = np.zeros((*channels, *(stop - start)), dtype=dtype)
    if (inner_stop > inner_start).all():
        target: tuple[Any, ...] = (..., *map(slice, (inner_start - start).tolist(), (inner_stop - start).tolist()))
        out[target] = _box(array, first, last)
    return out


def _box(array: Any, start: list[int], stop: list[int]) -> np.ndarray:
    """Box inside of an array; `array[...]` would spend more time on its key than on a small box."""
    out = np.empty([b - a for a, b in zip(start, stop, strict=True)], dtype=array.dtype)
    return np.asarray(array.get_slice_numpy(out, (start, stop))) if out.size else out

"""Bodies of volumes, resized and in half precision: what one is, and reading one that is stored beside the volumes.

A file holds its origin in `schunk.vlmeta["origin"]`: the size and bytes of the volume, the bytes of its mask, and the
body's box. It is checked whenever the file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box

if TYPE_CHECKING:
    from nnssl.data.volumes import BloscVolume

Size = tuple[int, int, int]


class ResizedBody(NamedTuple):
    """A resized body: `values` (C, z, y, x) float16, and the `box` of the volume that they show."""

    values: np.ndarray
    box: Box


def resized_folder(images: Path, largest: Sequence[int]) -> Path:
    """Folder whose `body_folder` holds the bodies of the volumes in `images`, resized to at most a size (z, y, x)."""
    return images.with_name(f"{images.name}_{'x'.join(map(str, largest))}")


def resized_shape(box: Box, largest: Sequence[int]) -> list[int]:
    """Size (z, y, x) of a body after resizing: axes that are no longer than `largest` stay as they are."""
    return [int(n) for n in np.minimum(box.stop - box.start, largest)]


def resized_body(volume: BloscVolume, largest: Sequence[int]) -> ResizedBody:
    """Read the body's box of a volume and resize it (trilinear, corners aligned; methods.md 2.1).

    Raises:
        UserError: half precision cannot hold its values.
    """
    box = volume.body_box
    values, shape = torch.from_numpy(volume.read(*box)), resized_shape(box, largest)
    if list(values.shape[1:]) != shape:
        values = F.interpolate(values[None], size=shape, mode="trilinear", align_corners=True)[0]
    halves = values.half()
    if not halves.isfinite().all():
        raise UserError(f"{volume.folder.name}/{volume.case} has values up to {float(values.abs().max()):.3g}, and a "
                        f"stored body holds at most 65,504; add -o body_size=none")  # fmt: skip
    return ResizedBody(halves.numpy(), box)


def origin_of(volume: BloscVolume, box: Box) -> dict[str, Any]:
    """What a stored body says of the volume that it was made of."""
    image, mask = (home / f"{volume.case}.b2nd" for home in (volume.folder.images, volume.folder.bodies))
    return {
        "size": volume.size.tolist(),
        "image_bytes": image.stat().st_size,
        "mask_bytes": mask.stat().st_size,
        "start": box.start.tolist(),
        "stop": box.stop.tolist(),
    }


def stored_body(volume: BloscVolume, file: Path, largest: Sequence[int]) -> np.ndarray | None:
    """The resized body (C, z, y, x) float16 in a file; None without the file.

    Raises:
        UserError: the file is damaged, or does not fit the volume.
    """
    import blosc2

    if not file.is_file():
        return None
    try:
        array: Any = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})
        origin = dict(array.schunk.vlmeta["origin"])
        box = Box(np.array(origin["start"], dtype=np.int64), np.array(origin["stop"], dtype=np.int64))
        inside = box.start.shape == box.stop.shape == (3,) and (box.start >= 0).all() and (box.start < box.stop).all()
        fits = inside and origin == origin_of(volume, box) and (box.stop <= volume.size).all()
        shape = (len(volume.folder.channels), *resized_shape(box, largest)) if fits else ()
        values = np.asarray(array[...]) if (array.shape, array.dtype) == (shape, np.float16) else None
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it, and run the same line again") from error
    if values is None:
        raise UserError(f"{file} was not made of {volume.case} as it is now; delete it, and run the same line again")
    return values

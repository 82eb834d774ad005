"""A point of one raw image, found in another one: what `nnssl_match` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.match_picture import draw_match
from nnssl.checkpoints.pretrained import PretrainedEncoder, read_pixel_encoder
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.distributed import check_device
from nnssl.core.errors import UserError
from nnssl.features.guard import ImageGuard
from nnssl.features.images import PreparedImage, channel_files, prepare_image
from nnssl.features.match import EncodedImage, distance_back, encode_image, match_points, similarity_map

Floats = NDArray[np.float64]
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])  # and back


@dataclass(frozen=True)
class Place:
    """A point of an image: (3,) mm (x, y, z) in the world, and (3,) voxels (x, y, z) of the file, also between them."""

    name: str
    world: Floats
    voxel: Floats


@dataclass(frozen=True)
class Match:
    """What was found.

    Args:
        query: the point.
        key: its best match, the centre of a cell.
        similarity: mean cosine of the embeddings, -1 to 1.
        back_mm: how far from the point the match lands, if it is searched in the query image.
        cell_mm: (3,) size (z, y, x) of a cell, in mm: how exact a match can be.
    """

    query: Place
    key: Place
    similarity: float
    back_mm: float
    cell_mm: Floats


def match(
    model: str | Path,
    query: str | Path,
    key: str | Path,
    point: Sequence[float],
    output: str | Path | None = None,
    voxel: bool = False,
    ras: bool = False,
    device: str = "cpu",
    allow_other_intensities: bool = False,
) -> Match:
    """Find the point of the key image that is most similar to a point of the query image.

    Args:
        model: run folder of a pretraining with `sam` or `lapn`, or a checkpoint.
        query: raw image, see `nnssl.features.images.channel_files`.
        key: raw image.
        point: (x, y, z) in mm of the world, or voxels of the query's file.
        output: PNG to write; None for none.
        voxel: whether the point is in voxels (integers are centres, the first is 0).
        ras: whether world coordinates are RAS, here and in the result; else LPS.
        device: `cpu` or `cuda`.
        allow_other_intensities: take images of another modality than the pretraining's.

    Raises:
        UserError: a file is missing or cannot be used, the images are of another modality (`nnssl.data.guard`), or the
            point is not in the image.
    """
    check_device(device, 1)
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise UserError(f"the folder {Path(output).resolve().parent} of -o does not exist; make it first")
    encoder = read_pixel_encoder(checkpoint_of(model))
    ending = encoder.dataset_json["file_ending"]
    files = [channel_files(image, encoder.encoder.input_channels, ending) for image in (query, key)]
    guard = ImageGuard(encoder, files, allow_other_intensities)
    asked, searched = (
        guard.saw(prepare_image(image, encoder.plans, encoder.configuration, encoder.dataset_json))
        for image in (query, key)
    )
    guard.report()
    turn = _LPS_TO_RAS if ras else np.ones(3)
    at = locate(asked, point, voxel, ras)
    encoded, other = encode(encoder, asked, device), encode(encoder, searched, device)
    found = match_points(encoded, other, at)
    back = distance_back(encoded, other, at, found, asked.geometry.spacing)
    stride = other.strides["fine"]
    if output is not None:
        draw_match(asked, searched, at, found.points[0], similarity_map(encoded, other, at), stride, Path(output))
    return Match(
        _place(asked, at, turn),
        _place(searched, found.points[0], turn),
        float(found.similarity[0]),
        float(back[0]),
        np.asarray(stride) * searched.geometry.spacing,
    )


def encode(encoder: PretrainedEncoder, image: PreparedImage, device: str = "cpu") -> EncodedImage:
    """Encode an image in tiles of the pretraining's patch size."""
    return encode_image(encoder.encoder, image.values, encoder.patch_size, device)


def locate(image: PreparedImage, point: Sequence[float], voxel: bool, ras: bool) -> Floats:
    """The point as (3,) voxels (z, y, x) of the preprocessed image.

    Args:
        image: that it is in.
        point: (x, y, z) in mm of the world, or voxels of the file.
        voxel: whether it is in voxels.
        ras: whether its millimetres are RAS instead of LPS.

    Raises:
        UserError: it is not in the image, or in what nnU-Net crops from it.
    """
    geometry, turn = image.geometry, _LPS_TO_RAS if ras else np.ones(3)
    given = np.asarray(point, dtype=np.float64)
    if not np.isfinite(given).all():
        raise UserError(f"the point {' '.join(f'{v:g}' for v in given)} has to be three finite numbers, as in "
                        f"-p 12.5 -30 104")  # fmt: skip
    world = geometry.file_to_world(given) if voxel else given * turn
    at = geometry.world_to_grid(world)
    if not geometry.inside(at):
        corners = np.array([[-0.5] * 3, geometry.size - 0.5])
        ends = geometry.grid_to_world(corners)
        ends = geometry.world_to_file(ends) if voxel else ends * turn
        low, high = ends.min(0), ends.max(0)
        ranges = ", ".join(f"{n} {a:.1f} to {b:.1f}" for n, a, b in zip("xyz", low, high, strict=True))
        unit = "voxels" if voxel else "mm"
        hint = "" if voxel else " (--voxel takes voxels, --ras other signs of x and y)"
        raise UserError(f"the point {' '.join(f'{v:g}' for v in given)} is not in what nnU-Net keeps of {image.name}, "
                        f"which in {unit} is {ranges}; give a point in there{hint}")  # fmt: skip
    return at


def _place(image: PreparedImage, at: Floats, turn: Floats) -> Place:
    world = image.geometry.grid_to_world(at)
    return Place(image.name, world * turn, image.geometry.world_to_file(world))

"""Which voxels are body: everything that outside air does not reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

AIR_HU = -500.0  # below it a voxel is air (methods.md 1.1)
_RANGE_PERCENTILES = (0.5, 99.5)
_RANGE_SAMPLES = 1_000_000  # voxels that the stored percentiles are taken from
# Small enough that one slice or one box decompresses little else: 16 KiB blocks in chunks of at most 1 MiB.
_BLOCK = (4, 64, 64)
_CHUNK = (16, 256, 256)


def body_mask_ct(hu: np.ndarray, threshold: float = AIR_HU) -> np.ndarray:
    """Body of a CT (methods.md 1.1): voxels that a flood of air from outside does not reach.

    Air is `hu < threshold`. One voxel of air is put around the two in-plane axes, not in z, and flooded from the corner
    through all 26 neighbours. Enclosed gas (lung, bowel) stays body unless it meets the outside in the first or last
    slice.

    Args:
        hu: (Z, Y, X), any numeric type.
        threshold: in the unit of `hu`.

    Returns:
        (Z, Y, X) bool.
    """
    from scipy import ndimage

    air = np.pad(hu < threshold, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    regions, _ = ndimage.label(air, structure=np.ones((3, 3, 3), dtype=bool))
    return np.asarray(regions[:, 1:-1, 1:-1] != regions[0, 0, 0])


def body_mask_normalized_ct(values: np.ndarray, properties: dict[str, float]) -> np.ndarray:
    """Body of a CT channel that nnU-Net has clipped, normalised and resampled already.

    HU are recovered with the mean and deviation of the plans, up to the clipping. Where the clip window starts below
    -500 HU this is `body_mask_ct`, up to the resampling. A narrower window (as planned from labels of soft tissue, say
    -50 to 250 HU) has turned everything under its lower bound into one value: air then is what lies less than 5 % of
    the window above that bound (ringing of the cubic resampling stays below it), and skin and fat under the bound that
    touch outside air are not body.

    Args:
        values: (Z, Y, X) normalised values.
        properties: of the channel in the plans: mean, std, percentile_00_5, percentile_99_5, in HU.

    Returns:
        (Z, Y, X) bool.
    """
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    threshold = max(AIR_HU, low + 0.05 * (high - low))
    return body_mask_ct(values, (threshold - properties["mean"]) / max(properties["std"], 1e-8))


def save_body_mask(path: Path, body: np.ndarray, image: np.ndarray) -> None:
    """Write a mask with what a reader needs to draw from it: a body voxel costs one slice, not the whole mask.

    `schunk.vlmeta` holds `slice_counts` (list of Z ints: body voxels per slice) and `intensity_range` (list of [0.5,
    99.5 percentile] of the values inside the body per channel, from at most a million voxels, evenly spaced).

    Args:
        path: file to write; not atomic, see `nnssl.data.storage`.
        body: (Z, Y, X) bool.
        image: (C, Z, Y, X) preprocessed values.
    """
    import blosc2

    path.unlink(missing_ok=True)
    array: Any = blosc2.asarray(
        np.ascontiguousarray(body, dtype=np.uint8),
        urlpath=str(path),
        chunks=tuple(map(min, _CHUNK, body.shape)),
        blocks=tuple(map(min, _BLOCK, body.shape)),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1},
    )
    array.schunk.vlmeta["slice_counts"] = [int(count) for count in body.sum(axis=(1, 2))]
    array.schunk.vlmeta["intensity_range"] = [_percentiles(channel[body]) for channel in image]


def _percentiles(values: np.ndarray) -> list[float]:
    step = -(-values.size // _RANGE_SAMPLES)
    return [float(p) for p in np.percentile(values[::step], _RANGE_PERCENTILES)]

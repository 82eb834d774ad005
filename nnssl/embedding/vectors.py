"""One vector a case: the mean of the features over the body."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nnssl.core.escape import csv_table
from nnssl.core.files import replace_file
from nnssl.embedding.model import PretrainedModel
from nnssl.embedding.tiles import Slices, run_tile, tile_for
from nnssl.errors import BadCase
from nnssl.networks.pyramid import Stride

Vectors = dict[str, NDArray[np.float32]]


def body_vector(
    model: PretrainedModel,
    values: np.ndarray,
    body: NDArray[np.bool_],
    level: int | None = None,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Mean of the features of all body voxels (D,): of each level, or of one; finest first.

    Computed tile by tile as `nnssl.embedding.tiles.dense_features`; a cell counts as often as it has body voxels.

    Args:
        model: on the device.
        values: (C, Z, Y, X) float32, preprocessed.
        body: (Z, Y, X).
        level: number of one level; None for all of them, concatenated.
        device: where the model is.

    Raises:
        BadCase: the body is empty.
    """
    if not body.any():
        raise BadCase("all air: no body voxel on the grid of the plans")
    chosen = range(len(model.strides)) if level is None else [level]
    sums = [torch.zeros(model.channels[i], dtype=torch.float64, device=device) for i in chosen]
    tiling = tile_for(model, values)
    for box in tiling.boxes:
        cells = [tiling.cells(box, model.strides[i]) for i in chosen]
        weights = [_body_voxels(body, target, model.strides[i]) for (_, target), i in zip(cells, chosen, strict=True)]
        if not any(weight.any() for weight in weights):
            continue
        levels = run_tile(model, values, box, device)
        for total, (source, _), weight, i in zip(sums, cells, weights, chosen, strict=True):
            used = (slice(None), *source)
            total += torch.einsum("czyx,zyx->c", levels[i][used], torch.from_numpy(weight).to(levels[i])).double()
    return (torch.cat(sums) / int(body.sum())).float().cpu().numpy()


def _body_voxels(body: NDArray[np.bool_], cells: Slices, stride: Stride) -> NDArray[np.float32]:
    """Number of body voxels in each cell."""
    region = body[tuple(slice(part.start * step, part.stop * step) for part, step in zip(cells, stride, strict=True))]
    if region.size == 0:
        return np.zeros([part.stop - part.start for part in cells], dtype=np.float32)
    inside = torch.from_numpy(region.astype(np.float32))[None, None]
    z, y, x = (-n % step for n, step in zip(region.shape, stride, strict=True))
    counted = F.avg_pool3d(F.pad(inside, (0, x, 0, y, 0, z)), stride) * float(np.prod(stride))
    counts: NDArray[np.float32] = counted.round()[0, 0].numpy()
    return counts


def read_vectors(file: Path) -> Vectors:
    """Vectors by case; nothing where there is no file."""
    if not file.is_file():
        return {}
    with np.load(file) as content:
        return dict(zip(map(str, content["cases"]), content["vectors"], strict=True))


def write_vectors(folder: Path, vectors: Vectors, boundaries: list[int], as_csv: bool, finest: int = 0) -> None:
    """Write `vectors.npz`, and `vectors.csv` if asked for; each in one piece, cases sorted by name.

    Args:
        folder: where.
        vectors: (D,) by case, one at least.
        boundaries: first number of each level's part, and D.
        as_csv: whether to write the table: a line a case, its name first.
        finest: number of the first level.
    """
    names = sorted(vectors)
    rows = np.stack([vectors[name] for name in names]).astype(np.float32)
    content = io.BytesIO()
    np.savez(content, vectors=rows, cases=np.array(names), levels=np.array(boundaries))
    replace_file(folder / "vectors.npz", content.getvalue())
    if as_csv:
        lines = ([name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, rows, strict=True))
        table = csv_table(["case", *_columns(boundaries, finest)], lines)
        replace_file(folder / "vectors.csv", table.encode())


def _columns(boundaries: list[int], finest: int) -> list[str]:
    """Such as level0_0, level0_1, level1_0: level and channel."""
    parts = enumerate(pairwise(boundaries), start=finest)
    return [f"level{level}_{channel}" for level, (first, last) in parts for channel in range(last - first)]

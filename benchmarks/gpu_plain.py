"""Each method's published formula written out plainly, beside the package's function for it.

Plain means what a reader of the paper types: one matrix, one mask, no strips and no work of the backward pass saved.
Both get the same tensors, of the sizes of a step at the paper's size; VoCo's and PiMPiC's are those of one volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gpu_step import Timeline, release
from torch import Tensor

from nnssl.methods.alice.loss import cosine_distance
from nnssl.methods.lapn.loss import queue_info_nce
from nnssl.methods.pimpic.loss import region_averages
from nnssl.methods.sam.loss import Cells, Pairs, fine_loss
from nnssl.methods.shared.info_nce import info_nce
from nnssl.methods.shared.masked_method import masked_mse, normalised_blocks
from nnssl.methods.simclr.method import nt_xent
from nnssl.methods.unet_mae.method import hidden_mse
from nnssl.methods.volumefusion.loss import fusion_loss
from nnssl.networks.window_attention import biased_attention

_MOST = 20  # repeats


@dataclass(frozen=True)
class Formula:
    """One formula twice.

    Args:
        name: of the formula, with its source.
        draw: makes the tensors, of the paper's sizes or (True) of toy sizes; floating ones in front get a gradient.
        learned: how many of them get one.
        ours, plain: map the tensors to a scalar.
    """

    name: str
    draw: Callable[[bool], Sequence[Tensor]]
    learned: int
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]


def compare(method: str, device: torch.device, seconds: float, small: bool) -> dict[str, Any]:
    """Time ours, and plain in float32 and bf16, forward and backward in turn, for about `seconds`.

    Returns:
        `formula`, and `rows` with the median `seconds`, the `memory` in GiB that a pass adds (None on a CPU) and the
        `value`; all None where the memory did not suffice.
    """
    formula = FORMULAS[method]
    torch.manual_seed(0)
    tensors = [tensor.to(device) for tensor in formula.draw(small)]
    ways = {"ours": (formula.ours, False), "plain float32": (formula.plain, False), "plain bf16": (formula.plain, True)}
    found: dict[str, list[tuple[float, float | None, float]]] = {name: [] for name in ways}
    full: set[str] = set()
    repeats, spent = 0, 0.0
    while repeats < 2 or (spent < seconds and repeats < _MOST and not small):
        for name in [name for name in ways if name not in full]:
            try:
                found[name].append(_pass(*ways[name], tensors, formula.learned, device))
                spent += found[name][-1][0]
            except torch.cuda.OutOfMemoryError:
                full.add(name)
            release(device)
        repeats += 1
    return {"formula": formula.name, "rows": [_row(name, [] if name in full else found[name][1:]) for name in ways]}


def _pass(
    function: Callable[..., Tensor], half: bool, tensors: Sequence[Tensor], learned: int, device: torch.device
) -> tuple[float, float | None, float]:
    """Seconds, GiB that were added, and the value, of one forward and backward pass."""
    given = [t.detach().requires_grad_(i < learned) for i, t in enumerate(tensors)]
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    timeline = Timeline(device)
    timeline.mark()
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        value = function(*given)
    value.backward()
    timeline.mark()
    (seconds,) = timeline.seconds()
    memory = (torch.cuda.max_memory_allocated(device) - before) / 2**30 if cuda else None
    return seconds, memory, float(value.detach())


def _row(name: str, passes: list[tuple[float, float | None, float]]) -> dict[str, Any]:
    if not passes:
        return {"name": name, "seconds": None, "memory": None, "value": None}
    return {"name": name, "seconds": median(p[0] for p in passes), "memory": passes[-1][1], "value": passes[-1][2]}


def one_matrix(h1: Tensor, h2: Tensor, temperature: float) -> Tensor:
    """InfoNCE of N pairs from the 2N x 2N matrix."""
    n = len(h1)
    z = F.normalize(torch.cat([h1, h2]), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    return F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))


def _one_matrix_of_keys(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    q, k, n = (F.normalize(x, dim=1) for x in (queries, keys, queue))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], dim=1) / 0.07
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def _regions(feature_map: Tensor, boxes: Tensor) -> Tensor:
    """The averages over boxes and over the rest, from one mask a box."""
    cells = torch.meshgrid(*(torch.arange(n, device=boxes.device) for n in feature_map.shape[2:]), indexing="ij")
    place = torch.stack(cells)[None, None]
    inside = ((place >= boxes[:, :, 0, :, None, None, None]) & (place < boxes[:, :, 1, :, None, None, None])).all(2)
    means = []
    for mask in (inside, ~inside):
        weight = mask.flatten(2).to(feature_map.dtype)
        means.append(weight @ feature_map.flatten(2).mT / weight.sum(2, keepdim=True).clamp(min=1))
    return torch.stack(means, dim=2).square().mean()


def _hardest(vectors: Tensor, places: Tensor, query: Tensor, positive: Tensor) -> Tensor:
    """SAM's fine loss from the whole matrix of queries and cells, with all ranked cells as negatives."""
    score = vectors[query] @ vectors.T
    near = torch.cdist(places[query], places, compute_mode="donot_use_mm_for_euclid_dist") < _IGNORE_MM
    hidden = near.scatter(1, positive[:, None], True)
    hardest = score.masked_fill(hidden, -math.inf).topk(min(_RANKED, len(places)), dim=1).values
    logits = torch.cat([(vectors[query] * vectors[positive]).sum(1, keepdim=True), hardest], dim=1) / 0.5
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


_IGNORE_MM, _RANKED = 20.0, 500


def _our_hardest(vectors: Tensor, places: Tensor, query: Tensor, positive: Tensor) -> Tensor:
    cells = Cells(vectors, places, torch.ones_like(places[:, 0], dtype=torch.bool))
    pairs = Pairs(query, positive, torch.ones_like(query, dtype=torch.bool))
    return fine_loss(cells, None, pairs, _IGNORE_MM, _RANKED, _RANKED)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    weights = (query @ key.mT * query.shape[-1] ** -0.5 + bias).softmax(-1)
    return (weights @ value).float().square().mean()


def _our_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return biased_attention(query, key, value, bias, None, query.shape[-1] ** -0.5).float().square().mean()


def _hidden_blocks(prediction: Tensor, blocks: Tensor, hidden: Tensor) -> Tensor:
    """Every crop has the same number of hidden blocks, so that one mean is the mean of the crops' means."""
    chosen = blocks[hidden]
    target = (chosen - chosen.mean(1, keepdim=True)) / (chosen.var(1, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(prediction[hidden], target)


def _pairs(n: int, d: int) -> list[Tensor]:
    h1 = torch.randn(n, d)
    return [h1, h1 + torch.randn(n, d)]


def _cells(small: bool) -> list[Tensor]:
    grid = (2, 8, 8) if small else (32, 48, 48)  # both views of a patch of 32 x 96 x 96 at half the resolution
    places = torch.cartesian_prod(*(4.0 * torch.arange(n) for n in grid))
    places = torch.cat([places, places + 0.5])
    query = torch.randperm(len(places) // 2)[: 10 if small else 200]
    return [F.normalize(torch.randn(len(places), 128), dim=1), places, query, query + len(places) // 2]


def _boxes(small: bool) -> list[Tensor]:
    patches, channels, side = (2, 4, 8) if small else (32, 32, 64)
    corners = torch.randint(0, side // 2, (patches, patches - 1, 3))
    return [torch.randn(patches, channels, side, side, side), torch.stack([corners, corners + side // 2], dim=2)]


def _windows(small: bool) -> list[Tensor]:
    shape = (1, 2, 2, 27, 4) if small else (18, 125, 3, 343, 16)  # 18 inputs of 64^3, windows of 7^3
    return [*(torch.randn(shape) for _ in range(3)), torch.randn(1, shape[2], shape[3], shape[3])]


def _blocks(small: bool) -> list[Tensor]:
    crops, blocks, voxels = (2, 16, 8) if small else (8, 576, 4096)
    order = torch.rand(crops, blocks).argsort(1)
    return [torch.randn(crops, blocks, voxels), torch.randn(crops, blocks, voxels), order < 3 * blocks // 4]


def _voxels(small: bool) -> list[Tensor]:
    shape = (2, 1, 8, 8, 8) if small else (8, 1, 160, 160, 160)
    return [torch.randn(shape), torch.randn(shape), torch.rand(shape) < 0.75]


def _classes(small: bool) -> list[Tensor]:
    batch, side = (2, 8) if small else (8, 160)
    classes = torch.randint(0, 5, (batch, 1, *[side] * 3), dtype=torch.uint8)
    return [torch.randn(batch, 5, *[side] * 3), classes, torch.rand(classes.shape) < 0.9]


def _dice_and_entropy(logits: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    losses = []
    for crop, mine, shown in zip(logits, classes, counted, strict=True):
        rows, wanted = crop[:, shown[0]].T, mine[shown].long()
        shares, exact = rows.softmax(1), F.one_hot(wanted, rows.shape[1])
        dice = (2 * (shares * exact).sum(0) + 1e-5) / (shares.sum(0) + exact.sum(0) + 1e-5)
        losses.append(F.cross_entropy(rows, wanted) + 1 - dice.mean())
    return torch.stack(losses).mean()


def _vectors(small: bool) -> list[Tensor]:
    shape = (2, 6, 8) if small else (16, 144, 768)
    return [torch.randn(shape), torch.randn(shape)]


FORMULAS = {
    "vox2vec": Formula(
        "InfoNCE of all voxels (section 3.3)", lambda small: _pairs(48 if small else 10240, 128), 2,
        lambda a, b: info_nce(a, b, 0.1), lambda a, b: one_matrix(a, b, 0.1)),
    "simclr": Formula(
        "NT-Xent (eq. 1)", lambda small: _pairs(8, 128), 2,
        lambda a, b: nt_xent(torch.stack([a, b], 1)[:, None], 0.5, False, _apart(a)),
        lambda a, b: one_matrix(a, b, 0.5)),
    "lapn": Formula(
        "InfoNCE against a queue", lambda small: [*_pairs(*((16, 8) if small else (1024, 64))),
                                                  torch.randn(40 if small else 16384, 8 if small else 64)], 1,
        lambda q, k, n: queue_info_nce(q, k, n, 0.07), _one_matrix_of_keys),
    "sam": Formula("fine loss, hardest negatives", _cells, 1, _our_hardest, _hardest),
    "pimpic": Formula(
        "averages over the overlaps", _boxes, 1,
        lambda x, boxes: region_averages(x, (1, 1, 1), boxes).square().mean(), _regions),
    "voco": Formula("attention in windows, with a bias", _windows, 4, _our_attention, _attention),
    "mae": Formula(
        "error of the hidden blocks", _blocks, 1,
        lambda p, b, hidden: masked_mse(p, normalised_blocks(b), hidden).mean(), _hidden_blocks),
    "unet_mae": Formula(
        "error of the hidden voxels", _voxels, 1, lambda p, t, hidden: hidden_mse(p, t, hidden).mean(),
        lambda p, t, hidden: torch.stack([F.mse_loss(*x) for x in _by_crop(p, t, hidden)]).mean()),
    "volumefusion": Formula(
        "Dice and cross-entropy of the mixing weights", _classes, 1,
        lambda x, classes, counted: fusion_loss(x, classes, counted).mean(), _dice_and_entropy),
    "alice": Formula(
        "2 - 2 cos (eq. 2)", _vectors, 1, cosine_distance,
        lambda a, b: (2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean()),
}  # fmt: skip


def _apart(vectors: Tensor) -> Tensor:
    """Places (V, 1, 4) of crops of different volumes."""
    places = torch.zeros(len(vectors), 1, 4, device=vectors.device)
    places[:, 0, 0] = torch.arange(len(vectors), device=vectors.device)
    return places


def _by_crop(p: Tensor, t: Tensor, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(p[i][hidden[i]], t[i][hidden[i]]) for i in range(len(p))]

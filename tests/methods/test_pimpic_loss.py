from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.core.geometry import overlaps_of_patches
from nnssl.methods.pimpic.loss import EPS, pair_distances, pic_loss, pim_loss, region_averages, softmax_dice_loss
from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.pyramid import Stride
from tests.networks.helpers import load_reference

REFERENCE = load_reference("pimpic.json")


def double(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def vectors(case: str) -> tuple[Tensor, Tensor]:
    return double(REFERENCE[case]["P"]), double(REFERENCE[case]["S"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 4e-6)])
def test_pim_loss__code_and_paper(dtype: torch.dtype, tolerance: float) -> None:
    embeddings, overlap = (t.to(dtype) for t in vectors("pim_loss"))
    expected = REFERENCE["pim_loss"]
    whole = pair_distances(embeddings, overlap, include_diagonal=True)
    pairs = pair_distances(embeddings, overlap)
    assert whole.shape == (16,) and pairs.shape == (6,)
    assert abs(pim_loss(whole).item() - expected["code"]) < tolerance
    assert abs(pim_loss(pairs, eps=0).item() - expected["paper"]) < tolerance
    # the default differs from the paper by eps, and from the code by the diagonal, of which each costs -log(1 + eps)
    default = pim_loss(pairs).item()
    assert abs(default - (16 * expected["code"] + 4 * math.log1p(EPS)) / 12) < tolerance
    assert abs(expected["code"] / pim_loss(pairs, eps=0).item() - expected["ratio_code_over_paper"]) < 4e-6


def test_pair_distances__are_those_of_the_reference() -> None:
    distance = pair_distances(*vectors("pim_loss"), include_diagonal=True).view(4, 4)
    torch.testing.assert_close(distance, double(REFERENCE["pim_loss"]["D"]), rtol=0, atol=1e-12)


def test_pim_loss__clamped_pair_has_the_codes_value_and_no_gradient() -> None:
    embeddings, overlap = vectors("pim_loss_clamped")
    expected = REFERENCE["pim_loss_clamped"]
    embeddings.requires_grad_()
    distance = pair_distances(embeddings, overlap, include_diagonal=True)
    assert abs(distance[1].item() - expected["D01"]) < 1e-12
    loss = pim_loss(distance)
    assert abs(loss.item() - expected["code"]) < 1e-9
    loss.backward()
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad, double(expected["code_grad"]), rtol=0, atol=0)


def test_pim_loss__extension_gives_a_clamped_pair_a_gradient() -> None:
    embeddings, overlap = vectors("pim_loss_clamped")
    embeddings.requires_grad_()
    loss = pim_loss(pair_distances(embeddings, overlap), d_extension=True)
    loss.backward()
    assert embeddings.grad is not None
    assert loss.item() == pytest.approx(-math.log(0.05) + 20 * (1.3 - 0.95), rel=1e-4)
    # descent has to turn the embeddings towards each other: the cosine is too small
    assert ((embeddings - 1e-3 * embeddings.grad).prod(0).sum() > embeddings.prod(0).sum()).item()


def test_pim_loss__extension_is_a_tangent() -> None:
    at = torch.tensor([0.95 - 1e-9, 0.95 + 1e-9, 0.3], dtype=torch.float64, requires_grad=True)
    values = torch.stack([pim_loss(d, d_extension=True) for d in at])
    (slopes,) = torch.autograd.grad(values.sum(), at)
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(slopes[:2], torch.full((2,), 1 / (0.05 + EPS), dtype=torch.float64), rtol=1e-6, atol=0)
    assert values[2] == pim_loss(at[2])


@pytest.mark.parametrize("distance", [1.0, 1.0 - 1e-7, 2.0, 0.0])
@pytest.mark.parametrize("extension", [False, True])
def test_pim_loss__gradient_is_finite_at_the_edges(distance: float, extension: bool) -> None:
    d = torch.tensor([distance], requires_grad=True)
    loss = pim_loss(d, extension)
    loss.backward()
    assert d.grad is not None and loss.isfinite() and d.grad.isfinite()
    assert 0 <= d.grad <= (20 if extension else 1.05e6)


def test_pim_loss__zero_embedding_has_a_finite_gradient() -> None:
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    pim_loss(pair_distances(l2_normalise(embeddings), torch.full((2, 2), 0.5))).backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()


def test_pim_loss__volumes_count_alike_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    embeddings = l2_normalise(torch.randn(2, 5, 3, dtype=torch.float64))
    overlap = torch.rand(2, 5, 5, dtype=torch.float64)
    overlap = (overlap + overlap.mT) / 2
    both = pim_loss(pair_distances(embeddings, overlap))
    each = [pim_loss(pair_distances(e, s)) for e, s in zip(embeddings, overlap, strict=True)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    order = torch.randperm(5)
    shuffled = pair_distances(embeddings[:, order], overlap[:, order][:, :, order])
    torch.testing.assert_close(pim_loss(shuffled), both)


OBJECTIVES: tuple[Literal["code", "paper"], ...] = ("code", "paper")


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_pic_loss__code_and_paper(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    rows = torch.tensor(REFERENCE["pic_loss"]["Q"], dtype=dtype)
    expected = REFERENCE["pic_loss"]["by_tau"][str(temperature)]
    assert abs(pic_loss(rows, temperature).item() - expected["code"]) < tolerance
    assert abs(pic_loss(rows, temperature, "paper").item() - expected["paper_eq2"]) < tolerance


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pic_loss__chance_level(objective: Literal["code", "paper"]) -> None:
    same = torch.ones(3, 4, 2, dtype=torch.float64) / math.sqrt(2)
    expected = REFERENCE["pic_loss_chance_level"][objective]
    assert abs(pic_loss(same, objective=objective).item() - expected) < 1e-9


@pytest.mark.parametrize(("objective", "floor"), [("code", 0.23954), ("paper", 0.7338)])
def test_pic_loss__floor_is_far_from_zero(objective: Literal["code", "paper"], floor: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 4, 3, requires_grad=True)
    optimiser = torch.optim.Adam([rows], 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        loss = pic_loss(l2_normalise(rows), objective=objective)
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(floor, abs=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pic_loss__does_not_depend_on_which_patch_is_first(objective: Literal["code", "paper"]) -> None:
    torch.manual_seed(0)
    rows = l2_normalise(torch.randn(5, 4, 3, dtype=torch.float64))
    exchanged = rows[:, [1, 0, 3, 2]]
    torch.testing.assert_close(pic_loss(exchanged, objective=objective), pic_loss(rows, objective=objective))


def test_pic_loss__without_a_pair_is_an_exact_zero_on_the_graph() -> None:
    features = torch.randn(3, 2, requires_grad=True)
    rows = features[:0].reshape(0, 4, 2)
    for weights in (None, torch.empty(0)):
        features.grad = None
        loss = pic_loss(rows, weights=weights)
        loss.backward()
        assert loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_pic_loss__weights() -> None:
    torch.manual_seed(0)
    rows = l2_normalise(torch.randn(3, 4, 3, dtype=torch.float64))
    parts = torch.stack([pic_loss(row[None]) for row in rows])
    torch.testing.assert_close(pic_loss(rows), parts.mean())
    weights = torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(pic_loss(rows, weights=weights), (weights * parts).sum())


def test_pic_loss__zero_rows_have_a_finite_gradient() -> None:
    rows = torch.randn(2, 4, 3)
    rows[:, 2:] = 0  # what an empty rest could become
    rows.requires_grad_()
    loss = pic_loss(l2_normalise(rows))
    loss.backward()
    assert loss.isfinite() and rows.grad is not None and rows.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_softmax_dice_loss__vector(dtype: torch.dtype, tolerance: float) -> None:
    case = load_reference("pimpic.json")["segmentation_dice"]
    logits, labels = torch.tensor(case["logits"], dtype=dtype), torch.tensor(case["labels"])
    assert abs(softmax_dice_loss(logits, labels).item() - case["value"]) < tolerance


def test_softmax_dice_loss__is_zero_for_sure_and_right_voxels_even_of_absent_classes() -> None:
    labels = torch.tensor([[[[0, 1, 1]]]])
    logits = 100 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    assert softmax_dice_loss(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_softmax_dice_loss__refuses_labels_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"labels \(B, 1, ...\)"):
        softmax_dice_loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4))


LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def two_patches(second: list[int]) -> tuple[Tensor, Tensor]:
    """The maps of the reference, and the overlap boxes of patches that start at 0 and at `second`."""
    maps = torch.stack([torch.arange(64), torch.arange(100, 164)]).double().view(2, 1, 4, 4, 4)
    _, boxes = overlaps_of_patches(np.array([[0, 0, 0], second]), [4, 4, 4])
    return maps, torch.from_numpy(boxes)


def in_order(averages: Tensor) -> Tensor:
    """Overlap of patch 1, overlap of patch 2, rest of patch 1, rest of patch 2, from (2, 2, 2, 1)."""
    return torch.stack([averages[0, 1], averages[1, 0]], dim=1).flatten()


def brute_force(feature_map: Tensor, stride: Stride, boxes: Tensor) -> Tensor:
    out = torch.zeros(*boxes.shape[:2], 2, feature_map.shape[1], dtype=torch.float64)
    for m, k in np.ndindex(*boxes.shape[:2]):
        start, stop = boxes[m, k].tolist()
        inside = torch.zeros(feature_map.shape[2:], dtype=torch.bool)
        for z, y, x in np.ndindex(*inside.shape):
            cell = [(c * s, (c + 1) * s) for c, s in zip((z, y, x), stride, strict=True)]
            inside[z, y, x] = all(a < e and b > s for (a, b), s, e in zip(cell, start, stop, strict=True))
        for part, mask in enumerate((inside, ~inside)):
            if mask.any():
                out[m, k, part] = feature_map[m][:, mask].double().mean(1)
    return out


@pytest.mark.parametrize("level", [0, 1])
def test_region_averages__vectors(level: int) -> None:
    expected = REFERENCE["region_average"]
    maps, boxes = two_patches(expected["boxes"][1][0])
    assert boxes[0, 1].tolist() == expected["overlap_in_patch1"]
    assert boxes[1, 0].tolist() == expected["overlap_in_patch2"]
    pooled = functional.avg_pool3d(maps, 2) if level else maps
    averages = in_order(region_averages(pooled, (2**level,) * 3, boxes))
    torch.testing.assert_close(
        averages, torch.tensor(expected[f"level{level}"], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_region_averages__empty_rest_is_exactly_zero() -> None:
    maps, boxes = two_patches([0, 0, 0])
    averages = in_order(region_averages(maps, (1, 1, 1), boxes))
    expected = torch.tensor(REFERENCE["region_average_identical_boxes"]["code"], dtype=torch.float64)
    torch.testing.assert_close(averages, expected, rtol=0, atol=1e-7)
    assert averages[2:].eq(0).all()


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "size"), [((1, 1, 1), (6, 8, 12)), ((1, 2, 4), (6, 4, 3)), ((4, 3, 5), (2, 3, 3))])
def test_region_averages__anisotropic_levels_as_by_brute_force(
    memory_format: torch.memory_format, dtype: torch.dtype, stride: Stride, size: tuple[int, int, int]
) -> None:
    """The last stride does not divide the patch of (6, 8, 12): its map is rounded up, as by pooling with padding."""
    rng = np.random.default_rng(0)
    starts = rng.integers(-5, 6, (4, 3))
    _, boxes = overlaps_of_patches(starts, [6, 8, 12])
    maps = torch.randn(4, 3, *size).to(dtype=dtype, memory_format=memory_format)
    averages = region_averages(maps, stride, torch.from_numpy(boxes))
    assert averages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = brute_force(maps, stride, torch.from_numpy(boxes))
    torch.testing.assert_close(averages.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_region_averages__gradient(memory_format: torch.memory_format) -> None:
    _, boxes = overlaps_of_patches(np.array([[0, 0, 0], [1, -2, 3], [0, 0, 0], [9, 9, 9]]), [4, 4, 4])
    maps = torch.randn(4, 2, 4, 4, 4, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: region_averages(x, (1, 1, 1), torch.from_numpy(boxes)), maps)


def test_region_averages__overlaps_of_a_shared_volume_agree_at_the_finest_level() -> None:
    """Two patches cut from one map: what they have in common has one average, whichever patch it is read in."""
    volume = torch.randn(2, 12, 12, 12, dtype=torch.float64)
    starts = np.array([[0, 1, 2], [3, 0, 4], [2, 2, 2]])
    _, boxes = overlaps_of_patches(starts, [6, 6, 6])
    maps = torch.stack([volume[:, z : z + 6, y : y + 6, x : x + 6] for z, y, x in starts])
    overlap = region_averages(maps, (1, 1, 1), torch.from_numpy(boxes))[:, :, 0]
    torch.testing.assert_close(overlap, overlap.transpose(0, 1))

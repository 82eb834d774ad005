from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nnssl
from nnssl.methods.shared.info_nce import _Terms, clear_pairs, info_nce
from nnssl.networks.contrastive import l2_normalise
from tests.networks.helpers import load_reference

REFERENCE = load_reference("vox2vec.json")
CASES = REFERENCE["info_nce"]["cases"]

# Runs where nothing else has raised the process' largest resident set; the streamed loss comes first, so that the plain
# one, which needs more, still raises it.
MEMORY = """
import math, resource, torch
from nnssl.methods.shared.info_nce import info_nce
torch.set_num_threads(1)
N, D = 4096, 128
def plain(h1, h2):
    z = torch.nn.functional.normalize(torch.cat([h1, h2]), dim=1)
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(2 * N, dtype=torch.bool), -math.inf)
    return (logits.logsumexp(1) - (z[:N] * z[N:]).sum(1).repeat(2) / 0.1).mean()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
h = [torch.randn(N, D, requires_grad=True) for _ in range(2)]
info_nce(h[0][:64], h[1][:64]).backward()
for loss in (info_nce, plain):
    before = peak()
    loss(*h).backward()
    print(peak() - before)
"""


def pairs(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h1 = torch.randn(n, d, generator=generator, dtype=dtype)
    return h1, h1 + torch.randn(n, d, generator=generator, dtype=dtype)


def plain(h1: Tensor, h2: Tensor, temperature: float = 0.1, left_out: Tensor | None = None) -> Tensor:
    """The formula with one 2N x 2N matrix, view after view; left_out (N, N) are the voxels that are no negatives."""
    n = len(h1)
    z = torch.nn.functional.normalize(torch.cat([h1, h2]), dim=1)
    keep = ~(torch.eye(n, dtype=torch.bool) if left_out is None else left_out | torch.eye(n, dtype=torch.bool)).tile(
        2, 2
    )
    keep |= torch.eye(2 * n, dtype=torch.bool).roll(n, 0)  # the positives
    logits = (z @ z.T / temperature).masked_fill(~keep, -math.inf)
    return (logits.logsumexp(1) - (z[:n] * z[n:]).sum(1).repeat(2) / temperature).mean()


def with_gradients(loss: Any, h1: Tensor, h2: Tensor, **settings: Any) -> list[Tensor]:
    h1, h2 = h1.clone().requires_grad_(), h2.clone().requires_grad_()
    value = loss(h1, h2, **settings)
    return [value.detach(), *torch.autograd.grad(value, (h1, h2))]


@pytest.mark.parametrize("case", CASES, ids=[case["note"] for case in CASES])
def test_info_nce__reference(case: dict[str, Any]) -> None:
    h1, h2 = (torch.tensor(case[name], dtype=torch.float64) for name in ("h1", "h2"))
    assert info_nce(h1, h2, case["temperature"]).item() == pytest.approx(case["code_mean"], abs=1e-12)
    assert info_nce(h1, h2, case["temperature"], reduction="sum").item() == pytest.approx(case["paper_sum"], abs=1e-12)
    single = info_nce(h1.float(), h2.float(), case["temperature"])
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(case["code_mean"], rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=[case["note"] for case in CASES])
def test_terms__reference_per_view_and_voxel(case: dict[str, Any]) -> None:
    h = torch.tensor([case["h1"], case["h2"]], dtype=torch.float64).transpose(0, 1)
    terms = _Terms.apply(l2_normalise(h), None, case["temperature"], 0.0, 2, [len(h)])
    torch.testing.assert_close(terms.view(-1, 2).T, torch.tensor(case["per_view_per_voxel"], dtype=torch.float64))


def test_info_nce__chance_level() -> None:
    reference = REFERENCE["info_nce_chance_level"]
    same = torch.ones(reference["N"], 3)
    assert info_nce(same, same).item() == pytest.approx(reference["value"], rel=1e-6)


def test_info_nce__invariances() -> None:
    h1, h2 = pairs(9, 5)
    loss = info_nce(h1, h2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(pairs(5, 5, seed=2)[0])[0]
    torch.testing.assert_close(info_nce(h1[order], h2[order]), loss)
    torch.testing.assert_close(info_nce(h2, h1), loss)
    torch.testing.assert_close(info_nce(h1 @ rotation, h2 @ rotation), loss)
    torch.testing.assert_close(info_nce(3 * h1, h2), loss)
    assert not torch.isclose(info_nce(h1[order], h2), loss)


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 24, 74, 1000, None])
@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.01])
def test_info_nce__gradients_equal_autograd(chunk_rows: int | None, temperature: float) -> None:
    h1, h2 = pairs(37, 6)
    got = with_gradients(info_nce, h1, h2, temperature=temperature, chunk_rows=chunk_rows)
    for mine, expected in zip(got, with_gradients(plain, h1, h2, temperature=temperature), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.01])
def test_info_nce__float32_gradients(temperature: float) -> None:
    h1, h2 = pairs(200, 16, torch.float32)
    got = with_gradients(info_nce, h1, h2, temperature=temperature)
    for mine, expected in zip(
        got, with_gradients(plain, h1.double(), h2.double(), temperature=temperature), strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - expected).abs().max() < 1e-5 * expected.abs().max()


def test_info_nce__small_losses_keep_their_digits() -> None:
    h1, h2 = (t.repeat_interleave(2, 1) for t in (torch.eye(3), torch.eye(3)))
    expected = math.log1p(4 * math.exp(-1 / 0.05))  # 8e-9: far below the resolution of 1 / 0.05 in float32
    assert info_nce(h1, h2, 0.05).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_info_nce__autocast_changes_nothing(dtype: torch.dtype) -> None:
    h1, h2 = pairs(20, 8, torch.float32)
    expected = with_gradients(info_nce, h1, h2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = with_gradients(info_nce, h1, h2)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    half = info_nce(h1.to(dtype), h2.to(dtype))
    assert half.dtype == torch.float32
    assert torch.equal(half, info_nce(h1.to(dtype).float(), h2.to(dtype).float()))


@pytest.mark.parametrize("radius", [0.0, 3.0, 1000.0])
@pytest.mark.parametrize("chunk_rows", [6, None])
def test_info_nce__near_voxels_of_the_same_volume_are_no_negatives(radius: float, chunk_rows: int | None) -> None:
    h1, h2 = pairs(24, 6)
    places = torch.randint(0, 5, (24, 3), generator=torch.Generator().manual_seed(3)).double() * 1.5
    places[7], places[20] = places[1], places[2] + 5e-4  # coincident, the second within the tolerance
    sources = torch.cat([torch.arange(24).remainder(2)[:, None], places], 1)
    near = (places[:, None] - places[None]).norm(dim=-1) <= radius + 1e-3
    left_out = near & (sources[:, :1] == sources[:, 0])
    assert left_out[1, 7] and left_out[2, 20]
    got = with_gradients(info_nce, h1, h2, sources=sources, exclude_radius_mm=radius, chunk_rows=chunk_rows)
    for mine, expected in zip(got, with_gradients(plain, h1, h2, left_out=left_out), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)
    assert not torch.isclose(got[0], info_nce(h1, h2))


def test_info_nce__sources_far_apart_change_nothing() -> None:
    h1, h2 = pairs(6, 4)
    sources = torch.tensor([[0, 0, 0, float(i)] for i in range(6)])
    torch.testing.assert_close(info_nce(h1, h2, sources=sources, exclude_radius_mm=0.5), info_nce(h1, h2))
    sources = torch.tensor([[float(i), 0, 0, 0] for i in range(6)])  # one place in different volumes
    torch.testing.assert_close(info_nce(h1, h2, sources=sources, exclude_radius_mm=9), info_nce(h1, h2))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_info_nce__no_negatives_is_an_attached_zero(n: int, reduction: str) -> None:
    loss, *gradients = with_gradients(info_nce, *pairs(n, 3), reduction=reduction, sources=torch.zeros(n, 4))
    assert loss.shape == () and loss == 0
    assert all(gradient.shape == (n, 3) and not gradient.any() for gradient in gradients)


def test_info_nce__zero_vectors_have_finite_gradients() -> None:
    h1, h2 = pairs(4, 3, torch.float32)
    loss, *gradients = with_gradients(info_nce, h1 * torch.tensor([[0.0], [1], [1], [1]]), h2)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert l2_normalise(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"h2": torch.ones(3, 2)}, "h1 and h2"),
        ({"h1": torch.ones(4), "h2": torch.ones(4)}, "h1 and h2"),
        ({"sources": torch.ones(3, 4)}, "sources"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"reduction": "none"}, "reduction"),
        ({"exclude_radius_mm": -1.0}, "exclude_radius_mm"),
        ({"chunk_rows": 0}, "chunk_rows"),
    ],
)
def test_info_nce__bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(**({"h1": torch.ones(4, 2), "h2": torch.ones(4, 2)} | settings))


def test_clear_pairs__a_card_clears_the_same_pairs() -> None:
    near = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    looked_up, filled = torch.ones(5, 2, 7, 2), torch.ones(5, 2, 7, 2)
    clear_pairs(looked_up, near, few=True)
    clear_pairs(filled, near, few=False)
    assert torch.equal(looked_up, filled) and looked_up.sum() == 4 * (~near).sum()


def test_info_nce__needs_an_eighth_of_the_memory() -> None:
    root = str(Path(nnssl.__path__[0]).parent)
    environment = os.environ | {"PYTHONPATH": root}
    run = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    streamed, whole = (int(line) for line in run.stdout.split())
    assert streamed <= whole / 8, f"{streamed} KiB against {whole} KiB"

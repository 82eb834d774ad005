from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from nnssl.finetuning.windows import logits_without_averaging, parts_of_axis
from tests.networks.helpers import load_reference

VECTOR = load_reference("vox2vec.json")["sliding_window"]


def test_parts_of_axis__as_the_authors() -> None:
    axes = [parts_of_axis(side, patch) for side, patch in zip(VECTOR["image"], VECTOR["patch"], strict=True)]
    found = list(product(*axes))
    boxes = [
        [[p[0] for p in parts], [p[0] + n for p, n in zip(parts, VECTOR["patch"], strict=True)]] for parts in found
    ]
    pasted = [[[p[1] for p in parts], [p[2] for p in parts]] for parts in found]
    assert boxes == VECTOR["boxes"] and pasted == VECTOR["pasted"]


@pytest.mark.parametrize("patch", range(1, 12))
def test_parts_of_axis__cover_it(patch: int) -> None:
    for size in range(patch, 40):
        parts = parts_of_axis(size, patch)
        covered = [at for _, low, high in parts for at in range(low, high)]
        assert set(covered) == set(range(size)) and all(s >= 0 and s + patch <= size for s, _, _ in parts)
        assert len({s for s, _, _ in parts}) == len(parts)


class _Numbered(nn.Module):
    """Outputs the number of the call, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing, self.calls = nn.Parameter(torch.zeros(())), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.cat([torch.full_like(x, float(self.calls)), x + self.nothing], dim=1)


@pytest.mark.parametrize("size", [(9, 14, 7), (5, 6, 4), (3, 17, 2)])
def test_logits_without_averaging__against_a_plain_loop(size: tuple[int, int, int]) -> None:
    patch, image = (5, 6, 4), torch.rand(1, *size)
    found = logits_without_averaging(_Numbered(), image, patch, 2)
    whole = [max(s, p) for s, p in zip(size, patch, strict=True)]
    expected = torch.zeros(whole)
    windows = product(*(parts_of_axis(s, p) for s, p in zip(whole, patch, strict=True)))
    for number, (z, y, x) in enumerate(windows, start=1):
        for at in product(range(*z[1:]), range(*y[1:]), range(*x[1:])):
            expected[at] = number  # the later window is kept
    assert torch.equal(found[0], expected[: size[0], : size[1], : size[2]])
    assert torch.equal(found[1], image[0])

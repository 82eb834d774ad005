from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnssl.finetuning.output_bias import RAREST, class_frequencies, start_at_frequencies


def _dataset(*maps: np.ndarray) -> Any:
    cases = {f"case_{number}": labels[None] for number, labels in enumerate(maps)}
    return SimpleNamespace(identifiers=list(cases), load_case=lambda case: (None, cases[case], None, {}))


def _manager(sought: list[Any], regions: bool = False, ignored: int | None = None) -> Any:
    return SimpleNamespace(
        has_regions=regions, foreground_labels=sought, foreground_regions=sought, ignore_label=ignored
    )


def test_class_frequencies__of_labels_without_what_is_ignored() -> None:
    first, second = np.zeros((2, 5, 2), int), np.full((1, 5, 4), 3)
    first[0, :, 0], first[1, 0, 0], second[0, :2] = 1, 2, -1
    shares = class_frequencies(_dataset(first, second), _manager([1, 2], ignored=3))
    assert shares == pytest.approx([22 / 28, 5 / 28, 1 / 28])


def test_class_frequencies__of_every_nth_plane_of_a_large_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl.finetuning.output_bias._VOXELS", 40)
    labels = np.zeros((9, 5, 2), np.int8)
    labels[:5, 0] = 1  # of 90 voxels: planes 0, 3 and 6
    shares = class_frequencies(_dataset(labels), _manager([1]))
    assert shares == pytest.approx([26 / 30, 4 / 30])


def test_class_frequencies__of_regions() -> None:
    labels = np.array([0, 1, 2, 2]).reshape(1, 2, 2)
    assert class_frequencies(_dataset(labels), _manager([(1, 2), (2,)], regions=True)) == pytest.approx([0.75, 0.5])


def test_start_at_frequencies__is_what_outputs_of_nothing_are() -> None:
    layers = [nn.Conv3d(4, 3, 1), nn.Conv3d(6, 3, 1, bias=False)]
    start_at_frequencies(layers, np.array([0.9995, 0.0005, 0.0]), regions=False)
    probabilities = layers[0](torch.zeros(1, 4, 1, 1, 1)).softmax(1).flatten()
    expected = np.array([1 - RAREST, RAREST, RAREST]) / (1 + RAREST)
    assert probabilities.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_start_at_frequencies__of_regions() -> None:
    layer = nn.Conv3d(4, 2, 1)
    start_at_frequencies([layer], np.array([0.75, 0.0]), regions=True)
    assert layer(torch.zeros(1, 4, 1, 1, 1)).sigmoid().flatten().tolist() == pytest.approx([0.75, RAREST])

"""Every method's step at its paper's size, on a card that is only pretended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.pretended_card import CARD, pretended_card
from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.features.model import load_pretrained
from nnssl.features.tiles import dense_features
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.probe import CROPS, OnlineProbe
from nnssl.pretraining.rehearsal import rehearse
from nnssl.pretraining.setup import Setup, resolve_sizes
from tests.cards import pretends_a_card
from tests.pretraining.labelled import probed_setup
from tests.pretrainings import tiny_plans, write_pretraining
from tests.runs import CPU

pytestmark = pretends_a_card

# TFLOP a step and GiB at most, by method and preset
_PEAKS: dict[str, tuple[float, float]] = json.loads((Path(__file__).parent / "peaks.json").read_text())
_SLOW = {"alice alice_vit", "mae alice_12gb", "mae alice_nnformer", "alice alice_nnformer", "mae alice_swin",
         "alice alice_swin"}  # fmt: skip
# float64 that a card computes: numbers a volume or a point, not maps
_WIDE = (
    "methods/base.py",
    "methods/shared/info_nce.py _near_origin",
    "methods/shared/info_nce.py info_nce",
    "methods/simclr/method.py nt_xent",
)


def _setup(method: str, preset: str) -> Setup:
    plans: dict[str, Any] = json.loads(presets()[f"nnsslPlans_{preset}"].read_text())
    resolved = resolve_configuration(plans, "3d_fullres")
    resolved["normalization_schemes"] = ["CTNormalization"]  # open in the preset for any images
    config = resolve_sizes(get_method(method).config_class(), resolved, 1)
    nothing = Cases.of([], [])
    return Setup(method, config, plans, {"channel_names": {"0": "CT"}}, {}, "3d_fullres", "all", nothing, nothing,
                 Path("nowhere"), resolved=resolved)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in _SLOW)) for c in _PEAKS])
def test_step__waits_for_nothing_and_takes_the_memory_and_operations_that_it_took(case: str) -> None:
    setup = _setup(*case.split())
    with torch.device("meta"):
        method = setup.build_method()
    result = rehearse(setup, method)
    assert not result.waits, [str(wait) for wait in result.waits]
    assert not [str(wide) for wide in result.wide if not wide.where.startswith(_WIDE)]
    tflop, gib = _PEAKS[case]
    assert result.flop / 1e12 == pytest.approx(tflop, rel=0.05)
    assert result.peak_gib == pytest.approx(gib, rel=0.05)


def test_peaks__are_of_every_method() -> None:
    assert {case.split()[0] for case in _PEAKS} == set(method_names())


def test_probe__trains_without_a_wait_and_reads_its_predictions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = probed_setup(tmp_path)
    method = setup.build_method()
    probe = OnlineProbe(setup, method, CPU, torch.bfloat16)
    with pretended_card() as card:
        probe.device = probe.features.device = CARD
        probe.features.backbone, probe.heads = card.take(method.backbone), card.take(probe.heads)
        probe.optimiser = torch.optim.Adam(probe.heads.parameters())
        for step in range(2):
            card.begin()
            probe._train(step)
        assert probe._updates > 4 and not card.waits, [str(wait) for wait in card.waits]
        card.begin()
        probe._evaluate(probe.windows[:CROPS])
    assert [wait.what for wait in card.waits] == ["copy to the host"] * len(probe.heads.heads)


def test_embedding__waits_for_a_tile_and_its_maps_alone(tmp_path: Path) -> None:
    model = load_pretrained(write_pretraining(tmp_path, tiny_plans()))
    image = np.zeros((1, *model.patch_size), dtype=np.float32)
    with pretended_card() as card, torch.no_grad():
        on_card = card.take(model)
        on_card.pooled(card.empty_like(torch.from_numpy(image[None])))
        on_card.dense(card.empty_like(torch.from_numpy(image[None])))
        assert not card.waits, [str(wait) for wait in card.waits]
        dense_features(on_card, image, device="cuda")
    copies = [wait.what for wait in card.waits]
    assert copies == ["blocking copy from the host"] + ["copy to the host"] * len(model.strides)

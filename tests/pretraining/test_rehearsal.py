"""Every method's step at its paper's size, on a card that is only pretended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.pretended_card import CARD, pretended_card
from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import resolve_configuration
from nnssl.networks.heads import upsampled_to
from nnssl.pretraining.probe_heads import ProbeHeads, fit_step
from nnssl.pretraining.rehearsal import rehearse
from nnssl.pretraining.setup import Setup, resolve_sizes

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


def test_probe__trains_and_predicts_without_a_wait() -> None:
    with pretended_card() as card, torch.autocast("cuda", torch.bfloat16):
        heads = card.take(ProbeHeads((4, 8), ((2, 2, 2), (4, 4, 4)), 3))
        optimiser = torch.optim.Adam(heads.parameters())
        for update in range(2):
            heads.set_update(update)
            classes, weights = torch.zeros(9, dtype=torch.int64, device=CARD), torch.ones(9, device=CARD)
            fit_step(optimiser, heads.of_voxels(torch.zeros(9, 12, device=CARD)), classes, weights)
        with torch.no_grad():
            heads.eval()
            maps = [torch.zeros(1, 4, 8, 8, 8, device=CARD), torch.zeros(1, 8, 4, 4, 4, device=CARD)]
            for logits in heads.of_maps(maps).values():
                upsampled_to(logits.argmax(1, keepdim=True).float(), (2, 2, 2), (15, 16, 16)).long()
    assert not card.waits, [str(wait) for wait in card.waits]

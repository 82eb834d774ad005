from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.checkpoints.intensity import Bridge, IntensityBridge, bridge_intensities
from nnssl.core.errors import UserError
from tests.finetuning.plans import CT_WINDOW, small_plans

BOTH = ("3d_fullres", "3d_fullres")


def _plans(*windows: dict[str, float]) -> dict[str, Any]:
    plans = small_plans(channels=len(windows))
    plans["foreground_intensity_properties_per_channel"] = {str(i): w for i, w in enumerate(windows)}
    return plans


def _normalised(hu: np.ndarray, window: dict[str, float]) -> np.ndarray:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    return CTNormalization(intensityproperties=window).run(hu.copy())


def _apply(bridge: Bridge, values: np.ndarray) -> np.ndarray:
    assert bridge.channels is not None
    channels = json.loads(json.dumps(bridge.channels, allow_nan=False))  # as plans are saved and read
    image = torch.from_numpy(values).reshape(1, len(channels), -1, 1, 1)
    return IntensityBridge(channels)(image).reshape(values.shape).numpy()


WIDE = {"mean": -100.0, "std": 450.0, "percentile_00_5": -1024.0, "percentile_99_5": 1500.0}


def test_bridge__gives_what_the_source_plans_would_have_given() -> None:
    hu = np.linspace(-2000, 3000, 501, dtype=np.float32)
    bridge = bridge_intensities(_plans(WIDE), _plans(CT_WINDOW), BOTH)
    assert bridge.warnings == []  # the target keeps all that pretraining saw
    np.testing.assert_allclose(_apply(bridge, _normalised(hu, WIDE)), _normalised(hu, CT_WINDOW), atol=1e-5)


def test_bridge__says_what_the_target_has_cut_off() -> None:
    bridge = bridge_intensities(_plans(CT_WINDOW), _plans(WIDE), BOTH)
    assert len(bridge.warnings) == 1
    assert "-1024 to 1500 HU and these plans keep -900 to 700" in bridge.warnings[0]
    hu = np.linspace(-900, 700, 101, dtype=np.float32)
    np.testing.assert_allclose(_apply(bridge, _normalised(hu, CT_WINDOW)), _normalised(hu, WIDE), atol=1e-5)


def test_bridge__is_nothing_between_equal_plans() -> None:
    assert bridge_intensities(_plans(WIDE), _plans(WIDE), BOTH) == Bridge(None, [])
    mr = small_plans(scheme="ZScoreNormalization")
    assert bridge_intensities(mr, mr, BOTH) == Bridge(None, [])


def test_bridge__leaves_the_other_channels_alone() -> None:
    bridge = bridge_intensities(_plans(CT_WINDOW, WIDE), _plans(CT_WINDOW, CT_WINDOW), BOTH)
    hu = np.linspace(-2000, 3000, 51, dtype=np.float32)
    both = np.stack([_normalised(hu, CT_WINDOW), _normalised(hu, WIDE)])
    mapped = _apply(bridge, both)
    assert np.array_equal(mapped[0], both[0])
    np.testing.assert_allclose(mapped[1], _normalised(hu, CT_WINDOW), atol=1e-5)


def test_bridge__one_source_channel_serves_several() -> None:
    bridge = bridge_intensities(_plans(WIDE, WIDE, CT_WINDOW), _plans(CT_WINDOW), BOTH)
    assert bridge.channels is not None
    assert len(bridge.channels) == 3


def test_bridge__refuses_other_schemes_and_channels() -> None:
    ct, mr = _plans(WIDE), small_plans(scheme="ZScoreNormalization")
    with pytest.raises(UserError, match="channel 0 is normalised by ZScoreNormalization and was by CTNormalization"):
        bridge_intensities(mr, ct, BOTH)
    with pytest.raises(UserError, match="the pretraining read 2 channels and this dataset has 1"):
        bridge_intensities(ct, _plans(WIDE, WIDE), BOTH)


def test_bridge__warns_of_another_mask() -> None:
    inside = small_plans(scheme="ZScoreNormalization", use_mask_for_norm=[True])
    bridge = bridge_intensities(small_plans(scheme="ZScoreNormalization"), inside, BOTH)
    assert bridge.channels is None
    assert "normalised inside a mask in only one" in bridge.warnings[0]


def test_intensity_bridge__has_no_state() -> None:
    bridge = bridge_intensities(_plans(WIDE), _plans(CT_WINDOW), BOTH)
    assert bridge.channels is not None
    assert IntensityBridge(bridge.channels).state_dict() == {}

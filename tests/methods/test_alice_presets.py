from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data.presets import presets
from nnssl.methods.alice.method import Alice
from nnssl.methods.mae.method import MaskedAutoencoder
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.setup import resolve_sizes
from tests.networks.helpers import build_network, count_parameters

PARAMETERS = {"nnsslPlans_alice_vit": 93_078_958, "nnsslPlans_alice_12gb": 93_078_958,
              "nnsslPlans_alice_swin": 72_762_656}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset__has_the_papers_patch_and_the_codes_window(name: str) -> None:
    plans = json.loads(presets()[name].read_text())
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    hu = np.array([-1000.0, -125.0, 50.0, 225.0, 900.0])
    normalised = (hu.clip(window["percentile_00_5"], window["percentile_99_5"]) - window["mean"]) / window["std"]
    assert plans["plans_name"] == name and normalised.tolist() == [0, 0, 0.5, 1, 1]
    with torch.device("meta"):
        network = build_network(plans, "3d_fullres", 14)
        backbone = build_backbone(plans, "3d_fullres", "encoder")
        assert count_parameters(network) == PARAMETERS[name]
        for method in (Alice, MaskedAutoencoder):
            config: Any = resolve_sizes(method.config_class(), resolve_configuration(plans, "3d_fullres"), 1)
            method.check(config, backbone)
            built = method(backbone, config)
            assert config.patch_size == (64, 192, 192)
            assert built.block == (16, 16, 16) and built.grid == (4, 12, 12), "576 blocks"


def test_config__is_the_papers() -> None:
    config = Alice.config_class()
    assert (config.optimiser, config.betas, config.learning_rate) == ("adamw", (0.9, 0.95), 5e-5)
    assert config.schedule == "cosine" and config.num_epochs * config.steps_per_epoch == 100_000
    assert config.warmup_steps == 100 * 31  # epochs of 2,000 volumes, 64 a step

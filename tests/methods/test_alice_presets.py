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
from nnssl.networks.swin import _LinspaceOnCpu
from nnssl.pretraining.setup import resolve_sizes
from tests.networks.helpers import build_network, count_parameters, state_dict_shapes

PARAMETERS = {"nnsslPlans_alice_vit": 93_078_958, "nnsslPlans_alice_12gb": 93_078_958,
              "nnsslPlans_alice_swin": 491_933_542, "nnsslPlans_alice_nnformer": 9_760_698}  # fmt: skip


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
            swin = name == "nnsslPlans_alice_swin"  # discards blocks of its coarsest stride
            assert built.block == ((32,) * 3 if swin else (16,) * 3)
            assert built.grid == ((2, 6, 6) if swin else (4, 12, 12))


def test_preset__has_the_swin_b_of_its_source() -> None:
    """Liu et al. 2021: width 128, depths 2, 2, 18, 2, heads 4, 8, 16, 32; 87.8 M parameters in 2D."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    architecture = json.loads(presets()["nnsslPlans_alice_swin"].read_text())["configurations"]["3d_fullres"]
    given = architecture["architecture"]["arch_kwargs"]
    assert (given["feature_size"], given["depths"]) == (128, [2, 2, 18, 2]) and given["num_heads"] == [4, 8, 16, 32]
    published = _embedding(3, 4**2) + 2 * 128 + _stages(2, 3) + 2 * 1024 + 1000 * 1025  # norms and classifier
    assert published == 87_768_224
    with torch.device("meta"):
        plans = {"configurations": {"3d_fullres": architecture}}
        mine: Any = build_backbone(plans, "3d_fullres", "encoder")
    with _LinspaceOnCpu(), torch.device("meta"):
        official = SwinTransformer(
            in_chans=1, embed_dim=128, window_size=(7,) * 3, patch_size=(2,) * 3, depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
        )  # fmt: skip
    expected = _embedding(1, 2**3) + _stages(3, 4)
    assert count_parameters(mine.swinViT) == count_parameters(official) == expected == 107_051_608
    assert state_dict_shapes(mine.swinViT) == state_dict_shapes(official)


def _embedding(channels: int, patch: int) -> int:
    return 128 * (channels * patch + 1)


def _stages(axes: int, merges: int) -> int:
    """Parameters of Swin-B's blocks with windows of 7, and of its first merges."""
    total = 0
    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), strict=True)):
        width = 128 * 2**stage
        attention, layers = 4 * width * (width + 1), 8 * width**2 + 5 * width
        total += depth * (4 * width + attention + layers + 13**axes * heads)
        corners = 2**axes * width if stage < merges else 0
        total += 2 * corners + corners * 2 * width
    return total


def test_config__is_the_papers() -> None:
    config = Alice.config_class()
    assert (config.optimiser, config.betas, config.learning_rate) == ("adamw", (0.9, 0.95), 5e-5)
    assert config.schedule == "cosine" and config.num_epochs * config.steps_per_epoch == 100_000
    assert config.warmup_steps == 100 * 31  # epochs of 2,000 volumes, 64 a step

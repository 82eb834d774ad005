from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.data.presets import presets
from nnssl.networks.build import build_backbone
from nnssl.networks.lapn_unet import LapnPyramid, LapnUNet
from tests.networks.helpers import build_network, count_parameters, load_reference, state_dict_shapes

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
TINY: dict[str, Any] = {"channels": (4, 6, 8), "num_res_units": 2, "encoding_channels": 5}


def _meta(kind: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(*arguments, **options)


def _preset() -> dict[str, Any]:
    return json.loads(presets()["nnsslPlans_lapn"].read_text())


def test_lapn_pyramid__has_the_papers_size() -> None:
    pyramid = _meta(build_backbone, _preset(), "3d_fullres", "decoder")
    assert isinstance(pyramid, LapnPyramid) and pyramid.encodes
    assert count_parameters(pyramid) == 44_805_969  # 44.81 M
    assert pyramid.channels == (64, 64, 128, 256, 512)
    assert pyramid.strides == tuple((2**level,) * 3 for level in range(5))
    pyramid.check_patch([192, 192, 192], 1)


def test_lapn_pyramid__without_residual_units_is_the_papers_student() -> None:
    student = _meta(LapnPyramid, 1, (32, 64, 128, 256, 512), num_res_units=0, encoding_channels=15)
    assert count_parameters(student) == 7_937_783  # 7.94 M


@pytest.mark.parametrize("units", [0, 2])
def test_lapn_pyramid__computes_what_monais_unet_computes(units: int) -> None:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    mine = LapnPyramid(2, **{**TINY, "num_res_units": units})
    official = UNet(3, 2, 5, (4, 6, 8), (2, 2), num_res_units=units, norm=("INSTANCE", {"affine": True}))
    official.load_state_dict(mine.state_dict())
    x = torch.randn(2, 2, 8, 12, 16)
    torch.testing.assert_close(mine(x)[0], official(x), rtol=0, atol=0)


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_lapn_pyramid__maps_have_the_stated_channels_and_strides(levels: Any) -> None:
    torch.manual_seed(0)
    pyramid = LapnPyramid(2, **TINY, levels=levels)
    maps = pyramid(torch.randn(1, 2, 8, 12, 16))
    for feature_map, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert feature_map.shape == (1, channels, 8 // stride[0], 12 // stride[1], 16 // stride[2])
    sum(feature_map.square().mean() for feature_map in maps).backward()
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, _ in pyramid.named_parameters() if name.startswith(pyramid.unused)}
    assert silent == {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert bool(silent) == (levels == "encoder") and pyramid.encodes == (levels == "decoder")


@pytest.mark.parametrize(("patch", "advice"), [((6, 8, 8), "8,8,8"), ((4, 4, 4), "4,4,8"), ((4, 4, 6), "4,4,8")])
def test_check_patch__refuses_and_names_one_that_fits(patch: tuple[int, ...], advice: str) -> None:
    pyramid = LapnPyramid(1, **TINY)
    with pytest.raises(UserError, match=f"use .*{advice}"):
        pyramid.check_patch(patch)
    pyramid.check_patch([int(n) for n in advice.split(",")])


def test_lapn_unet__stock_nnunet_trains_it_with_deep_supervision() -> None:
    network: Any = get_network_from_plans(
        "nnssl.networks.lapn_unet.LapnUNet", {"strides": STRIDES, **TINY}, [], 1, 3, deep_supervision=True
    )
    scales = 1 / np.cumprod(np.vstack(STRIDES), axis=0)[:-1]  # as nnUNetTrainer counts its targets
    targets = [torch.zeros(1, 3, *(round(n * s) for n, s in zip((8, 8, 16), scale, strict=True))) for scale in scales]
    x = torch.randn(1, 1, 8, 8, 16)
    outputs = network(x)
    loss = DeepSupervisionWrapper(torch.nn.MSELoss(), np.array([2 / 3, 1 / 3]))(outputs, targets)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), outputs[0], rtol=0, atol=0)


def test_build__plans_give_the_network_and_its_pyramid() -> None:
    network = _meta(build_network, _preset(), "3d_fullres", 14)
    assert isinstance(network, LapnUNet) and not network.decoder.deep_supervision
    for levels in ("encoder", "decoder"):
        backbone = _meta(build_backbone, _preset(), "3d_fullres", levels)
        assert state_dict_shapes(network.backbone) == state_dict_shapes(backbone)
    plans = _preset()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"] = STRIDES
    with pytest.raises(UserError, match="strides"):
        _meta(build_network, plans, "3d_fullres", 2)


def test_preset__has_the_papers_sizes_and_window() -> None:
    plans = _preset()
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1.0] * 3 and configuration["batch_size"] == 1
    assert configuration["patch_size"] == [192] * 3
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    vector = load_reference("lapn.json")["intensity"]
    clipped = np.clip(vector["x"], window["percentile_00_5"], window["percentile_99_5"])  # as CTNormalization
    np.testing.assert_allclose((clipped - window["mean"]) / window["std"], vector["y"], rtol=0, atol=1e-12)


def test_import__monai_is_not_imported_before_a_network_is_built() -> None:
    code = "import sys, nnssl.networks.build, nnssl.methods.lapn.method; print('monai' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_lapn_pyramid__missing_monai_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(UserError, match=r"pip install .*monai"):
        LapnPyramid(1, **TINY)

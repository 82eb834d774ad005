from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.networks.unet3d import UNet3DPyramid
from tests.interchange.files import assert_same_maps, imported, randomised, saved
from tests.interchange.swins import assert_same_swin_maps, decoder_maps, published_swin

UNIVERSAL = {"module.organ_embedding.weight": torch.ones(2, 3), "module.GAP.0.weight": torch.ones(2)}


def _under(network: Any, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("compared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_suprem__swinunetr(
    compared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its maps are compared in double precision; `test_swinunetr` looks at each tensor of such a network."""
    source = published_swin(is_v2=False)
    state = _under(source, "module.backbone.") | UNIVERSAL
    run = imported(saved({"net": state, "epoch": 2}, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["family"] == "suprem" and run.about["levels"] == "decoder" and run.about["tensors_left"] == 4
    assert "no commercial use" in caplog.text and "must not be passed on" in caplog.text  # CC BY-NC-ND
    if compared:
        assert_same_swin_maps(run.folder, source, decoder_maps)


def test_suprem__unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = randomised(UNet3DPyramid(base_channels=4, levels="decoder"))
    state = _under(source, "module.backbone.") | UNIVERSAL
    for name in [name for name in state if name.endswith("bn1.bias")]:
        state |= {name.replace("bias", kind): torch.ones(4) for kind in ("running_mean", "running_var")}
    run = imported(saved({"net": state}, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["tensors_mapped"] == len(source.state_dict()) and run.about["title"] == "SuPreM, UNet3D"
    left = json.loads((run.folder / "import_report.json").read_text())["left"]
    assert {name.rsplit(".", 1)[-1] for name in left} == {"running_mean", "running_var", "weight"}
    assert_same_maps(run.folder, source, (16, 24, 8), axes="xyz")


def test_suprem__segresnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks.nets import SegResNet

    torch.manual_seed(0)
    source: Any = randomised(SegResNet(init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 2, 1),
                                       blocks_up=(2, 1)))  # fmt: skip

    def maps(x: Tensor) -> list[Tensor]:
        x, skips = source.encode(x)
        found = [x]
        for raising, layer, skip in zip(source.up_samples, source.up_layers, skips[-2::-1], strict=True):
            found.append(layer(raising(found[-1]) + skip))
        norm, act, _ = source.conv_final
        return [act(norm(found.pop())), *found[::-1]]

    run = imported(saved({"net": _under(source, "module.")}, tmp_path / "w"), tmp_path, monkeypatch)
    left = json.loads((run.folder / "import_report.json").read_text())["left"]
    assert left == dict.fromkeys(
        ["module.conv_final.2.conv.weight", "module.conv_final.2.conv.bias"], "a segmentation head"
    )
    kwargs = json.loads((run.folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    assert kwargs["arch_kwargs"]["blocks_down"] == [1, 2, 1] and kwargs["arch_kwargs"]["blocks_up"] == [2, 1]
    assert_same_maps(run.folder, maps, (8, 12, 4), axes="xyz")

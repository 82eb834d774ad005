from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.presets import presets
from nnssl.networks.monai_unet import MonaiUNet, has_deep_supervision
from tests.networks.helpers import build_network, count_parameters, unet_configuration

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def _preset(name: str) -> dict[str, Any]:
    return json.loads(presets()[name].read_text())


def test_student_preset__has_the_papers_size() -> None:
    with torch.device("meta"):
        student = build_network(_preset("nnsslPlans_lapn_student"), "3d_fullres", 15)
    assert isinstance(student, MonaiUNet)
    assert count_parameters(student) == 7_937_783  # 7.94 M
    assert student.backbone.divisor == (16, 16, 16)


def test_presets__share_volumes_with_the_pretraining() -> None:
    pretraining = _preset("nnsslPlans_lapn")
    for name in ("nnsslPlans_lapn_student", "nnsslPlans_lapn_segmentation"):
        plans = _preset(name)
        assert plans["plans_name"] == name
        assert {key for key in plans if plans[key] != pretraining[key]} == {"plans_name", "configurations"}
        own, other = (p["configurations"]["3d_fullres"] for p in (plans, pretraining))
        assert {key for key in own if own[key] != other[key]} == {"architecture"}


@pytest.mark.parametrize("units", [0, 1])
def test_monai_unet__gives_what_monais_unet_gives(units: int) -> None:
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = MonaiUNet(2, 3, STRIDES, (4, 6, 8), units)
    theirs = UNet(3, 2, 3, (4, 6, 8), (2, 2), num_res_units=units, norm=("INSTANCE", {"affine": True}))
    theirs.model.load_state_dict(network.backbone.model.state_dict())
    x = torch.randn(1, 2, 8, 16, 8)
    assert torch.equal(network(x), theirs(x)) and network(x).shape == (1, 3, 8, 16, 8)


def test_deep_supervision__is_refused_and_known_from_the_plans() -> None:
    with pytest.raises(UserError, match=r"no deep supervision.*nnUNetTrainer_LAPNDistill"):
        MonaiUNet(1, 2, STRIDES, (4, 6, 8), deep_supervision=True)
    assert not has_deep_supervision(_preset("nnsslPlans_lapn_student")["configurations"]["3d_fullres"])
    assert has_deep_supervision(unet_configuration("PlainConvUNet", STRIDES, [4, 6, 8]))
    assert has_deep_supervision({"UNet_class_name": "PlainConvUNet"})

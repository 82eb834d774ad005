from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.pretrained import Pretrained, load_pretrained, read_pretrained
from nnssl.core.errors import UserError
from nnssl.finetuning.segmentation import PyramidSegmentation, build_segmentation
from nnssl.networks.build import resolve_configuration
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining


def _network(plans: dict[str, Any], levels: str = "decoder") -> PyramidSegmentation:
    resolved = resolve_configuration(plans, "3d_fullres")
    block = {"levels": levels, "head": "nonlinear", "intensity": None}
    return build_segmentation(block, resolved, len(resolved["normalization_schemes"]), 3)


def _pretrained(tmp_path: Path, kind: str = "PlainConvUNet", channels: int = 1) -> Pretrained:
    plans = small_plans(kind, dataset="Dataset500_Source", channels=channels)
    return read_pretrained(write_pretraining(tmp_path, plans))


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet", "FPN3dUNet"])
def test_load_pretrained__gives_every_tensor_of_the_maps(tmp_path: Path, kind: str) -> None:
    source, network = _pretrained(tmp_path, kind), _network(small_plans(kind))
    fresh = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
    report = load_pretrained(network, source, "")
    state = network.backbone.state_dict()
    for name, tensor in source.backbone.items():
        assert torch.equal(state[name], tensor) or ".seg_layers." in name
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in network.head.state_dict().items())
    assert sum(report.loaded.values()) == sum(t.numel() for t in network.backbone.used_tensors().values())
    assert report.adapted == {}
    assert report.fresh.keys() == {f"head.{name}" for name in fresh}
    assert all(name.startswith("head.") or ".seg_layers." in name for name in report.unused)
    assert report.unused.keys() >= source.others.keys()


def test_load_pretrained__with_the_pretrained_maps(tmp_path: Path) -> None:
    """What the pretraining's backbone answers is what the network's answers."""
    from nnssl.networks.build import build_backbone

    plans = small_plans()
    source, network = _pretrained(tmp_path), _network(plans)
    load_pretrained(network, source, "")
    backbone = build_backbone(plans, "3d_fullres", "decoder")
    backbone.load_state_dict(source.backbone)
    image = torch.randn(1, 1, 8, 16, 16)
    for a, b in zip(network.backbone(image), backbone(image), strict=True):
        assert torch.equal(a, b)


def test_load_pretrained__of_an_encoder_leaves_the_decoder_out(tmp_path: Path) -> None:
    source = replace(_pretrained(tmp_path), levels="encoder")
    network = _network(small_plans(), "encoder")
    report = load_pretrained(network, source, "")
    assert report.loaded
    assert all(name.startswith("network.encoder.") for name in report.loaded)
    assert any(name.startswith("network.decoder.stages.") for name in report.unused)
    assert all(name.startswith("head.") for name in report.fresh)


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet", "FPN3dUNet"])
def test_load_pretrained__shares_one_channel_among_several(tmp_path: Path, kind: str) -> None:
    source, network = _pretrained(tmp_path, kind), _network(small_plans(kind, channels=3))
    report = load_pretrained(network, source, "")
    assert len(report.adapted) == 1
    single = _network(small_plans(kind))
    load_pretrained(single, source, "")
    image = torch.randn(1, 1, 8, 16, 16)
    for a, b in zip(network.eval().backbone(image.expand(1, 3, 8, 16, 16)), single.eval().backbone(image), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "other", [small_plans(features=(4, 6, 10)), small_plans(features=(4, 6)), small_plans("ResidualEncoderUNet")]
)
def test_load_pretrained__names_the_shapes_of_another_architecture(tmp_path: Path, other: dict[str, Any]) -> None:
    network = _network(other)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    source = _pretrained(tmp_path)
    if other["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 6]:
        source = replace(source, backbone={k: v for k, v in source.backbone.items() if "stages.1" not in k})
    with pytest.raises(UserError, match=r"holds another network.*in the checkpoint, \(.*\) in these plans.*run this"):
        load_pretrained(network, source, "run this")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_load_pretrained__refuses_several_channels_for_one(tmp_path: Path) -> None:
    source = _pretrained(tmp_path, channels=2)
    with pytest.raises(UserError, match=r"\(4, 2, 3, 3, 3\) in the checkpoint, \(4, 1, 3, 3, 3\) in these plans"):
        load_pretrained(_network(small_plans()), source, "")


def test_load_pretrained__refuses_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    source = replace(_pretrained(tmp_path), backbone={})
    with pytest.raises(UserError, match="no such tensor in the checkpoint"):
        load_pretrained(_network(small_plans()), source, "")


def test_report__has_a_line_a_group(tmp_path: Path) -> None:
    report = load_pretrained(_network(small_plans(channels=2)), _pretrained(tmp_path), "")
    lines = report.lines()
    assert [line.split(":")[0] for line in lines] == ["loaded", "adapted", "fresh", "unused"]
    assert "1 tensors" in lines[1]
    assert "first" in lines[1] or "stages.0" in lines[1]

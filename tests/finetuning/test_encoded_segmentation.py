from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.intensity import IntensityBridge
from nnssl.checkpoints.pretrained import read_pixel_encoder
from nnssl.core.errors import UserError
from nnssl.finetuning.encodings import EncodedSegmentation, build_encoded_segmentation
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining

BRIDGE = [{"scale": 0.5, "offset": 1.0, "low": -1.0, "high": 2.0}]


def _built(
    tmp_path: Path, method: str = "lapn", bridge: Any = None, deep: bool = False, encoder: str = "PlainConvUNet",
    **changes: Any,
) -> Any:  # fmt: skip
    """The network of two classes, with the encoder's weights, and what it was built from."""
    source = small_plans(dataset="Dataset500_Source", kind=encoder)
    read = read_pixel_encoder(write_pretraining(tmp_path, source, method=method))
    network = json.loads(json.dumps({"encoder": read.architecture, "intensity": bridge}))
    configuration = small_plans(**changes)["configurations"]["3d_fullres"]
    built = build_encoded_segmentation(network, configuration, 1, 2, deep)
    built.pixels.load_state_dict(read.encoder.state_dict())
    return built, network, configuration


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_build__json_gives_the_same_network(tmp_path: Path, kind: str) -> None:
    built, network, configuration = _built(tmp_path, kind=kind, bridge=BRIDGE)
    again = build_encoded_segmentation(network, configuration, 1, 2, False)
    again.load_state_dict(built.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), built.eval()(x))
    assert any(name.startswith("network.decoder.seg_layers.") for name in built.state_dict())


def test_encoder__is_never_trained(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path, deep=True)
    built.train()
    assert built.network.training and not any(module.training for module in built.pixels.modules())
    outputs = built(torch.randn(2, 1, 8, 16, 16))
    assert [tuple(output.shape[2:]) for output in outputs] == [(8, 16, 16), (8, 8, 8)]
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is None and not p.requires_grad for p in built.pixels.parameters())
    assert all(p.grad is not None for p in built.network.parameters())


def test_encoder__keeps_its_batch_statistics(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path, encoder="FPN3dUNet")
    before = {name: tensor.clone() for name, tensor in built.pixels.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    built.train()
    built(torch.randn(2, 1, 8, 16, 16)).square().mean().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.pixels.state_dict().items())


def test_encodings__are_the_encoders_on_bridged_intensities(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path, bridge=BRIDGE)
    x = 3 * torch.randn(1, 1, 8, 16, 16)
    expected = built.pixels((x * 0.5 + 1).clamp(-1, 2))["fine"]
    torch.testing.assert_close(built.encodings(x), expected, rtol=0, atol=1e-6)
    seen: dict[str, Any] = {}
    stems = built.network.encoder.stages[0][0].convs[0]
    stems.register_forward_hook(lambda _module, inputs, _output: seen.update(pair=inputs[0]))
    built(x)
    assert torch.equal(seen["pair"][0], x)  # the image itself as the plans normalise it
    assert seen["pair"][1].shape == (1, 64, 8, 16, 16)


def test_encodings__of_odd_patches_are_padded_and_cropped(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path)
    x = torch.randn(1, 1, 7, 15, 13)
    padded = torch.nn.functional.pad(x, (0, 3, 0, 1, 0, 1))  # the encoder's total stride is 2, 4, 4
    assert torch.equal(built.encodings(x), built.encodings(padded)[..., :7, :15, :13])
    with pytest.raises(UserError, match="leaves one voxel"):
        built.check_patch((1, 3, 4), 2)
    built.check_patch((3, 5, 5), 2)


def test_encodings__of_sam_are_fine_and_coarse(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path, method="sam")
    x = torch.randn(1, 1, 8, 16, 16)
    maps = built.pixels(x)
    encodings = built.encodings(x)
    assert encodings.shape == (1, sum(m.shape[1] for m in maps.values()), 8, 16, 16) and len(maps) == 2
    (z, y, x_), dims = built.pixels.strides["coarse"], built.pixels.dims
    coarse = encodings[:, dims["fine"] :]  # the heads come in the method's order
    assert torch.equal(coarse[..., ::z, ::y, ::x_], maps["coarse"]) and (z, y, x_) != (1, 1, 1)
    assert built(x).shape == (1, 2, 8, 16, 16)


def test_tensors__account_for_everything(tmp_path: Path) -> None:
    built, *_ = _built(tmp_path)
    assert isinstance(built, EncodedSegmentation) and isinstance(IntensityBridge(BRIDGE), torch.nn.Module)
    pretrained, own = built.pretrained_tensors(), built.own_tensors()
    used = {id(tensor) for tensor in pretrained.values()}
    assert {name for name, tensor in own.items() if id(tensor) not in used} == {
        f"network.{name}" for name, _ in built.network.named_parameters()
    }
    assert not any("seg_layers" in name for name in pretrained)
    built.encodings(torch.randn(1, 1, 8, 16, 16)).sum()
    assert all(name.startswith(("backbone.", "heads.fine.")) for name in pretrained)


def test_build__refuses_other_plans(tmp_path: Path) -> None:
    _, network, configuration = _built(tmp_path)
    with pytest.raises(UserError, match="another trainer"):
        build_encoded_segmentation({"levels": "decoder", "head": "linear"}, configuration, 1, 2, False)
    with pytest.raises(UserError, match="second stage of a cascade"):
        build_encoded_segmentation(network, configuration, 3, 2, False)

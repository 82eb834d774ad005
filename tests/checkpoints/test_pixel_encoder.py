from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import load_checkpoint, save_checkpoint
from nnssl.checkpoints.pretrained import build_pixel_encoder, read_pixel_encoder
from nnssl.core.errors import UserError
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.shared.pixel_method import PixelMethod
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining

PIXEL_METHODS = [name for name in method_names() if issubclass(get_method(name), PixelMethod)]


def _plans(**changes: Any) -> dict[str, Any]:
    return small_plans(dataset="Dataset500_Source", **changes)


def _lapn_network() -> dict[str, Any]:
    arguments = {"channels": [4, 6, 8], "num_res_units": 1, "encoding_channels": 64,
                 "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}  # fmt: skip
    return {"network_class_name": "nnssl.networks.lapn_unet.LapnUNet", "arch_kwargs": arguments,
            "_kw_requires_import": []}  # fmt: skip


@pytest.mark.parametrize("method", PIXEL_METHODS)
@pytest.mark.parametrize("kind", ["PlainConvUNet", "LapnUNet", "two channels"])
def test_read_pixel_encoder__json_gives_the_same_network_without_the_checkpoint(
    tmp_path: Path, method: str, kind: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "LapnUNet": {"architecture": _lapn_network()}, "two channels": {"channels": 2}
    }  # fmt: skip
    path = write_pretraining(tmp_path, _plans(**changes.get(kind, {})), method=method)
    read = read_pixel_encoder(path)
    assert (read.method, read.configuration, read.plans["dataset_name"]) == (method, "3d_fullres", "Dataset500_Source")
    assert read.dataset_json["file_ending"] == ".nii.gz" and read.path == path
    channels = 2 if kind == "two channels" else 1
    again = build_pixel_encoder(json.loads(json.dumps(read.architecture)), channels)
    again.load_state_dict(read.encoder.state_dict())
    x = torch.randn(1, channels, 16, 16, 32)
    maps, copies = read.encoder(x), again.freeze()(x)
    assert "fine" in maps and maps.keys() == copies.keys() == read.encoder.strides.keys()
    for name, encoding in maps.items():
        assert torch.equal(encoding, copies[name]) and not encoding.requires_grad
        torch.testing.assert_close(encoding.norm(dim=1), torch.ones_like(encoding[:, 0]))
    assert method != "lapn" or maps["fine"].shape == (1, 64, 16, 16, 32)


def test_read_pixel_encoder__encodes_as_the_method_does(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path, _plans(), method="lapn")
    encoder = read_pixel_encoder(path).encoder
    state = load_checkpoint(path)["method_state"]
    own = encoder.state_dict()
    assert own.keys() == {name for name in state if name.startswith(("backbone.", "heads."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


def test_read_pixel_encoder__refuses_other_methods_and_other_networks(tmp_path: Path) -> None:
    other = write_pretraining(tmp_path, _plans(), method="vox2vec")
    with pytest.raises(UserError, match=r"pretrained with vox2vec, which does not encode single pixels.*of lapn"):
        read_pixel_encoder(other)
    path = write_pretraining(tmp_path, _plans(), method="lapn")
    content = load_checkpoint(path)
    content["method_state"].pop("heads.fine.layer.weight")
    save_checkpoint({k: v for k, v in content.items() if k != "format"}, path)
    with pytest.raises(UserError, match=r"does not hold the network of its own plans \(heads.fine.layer.weight\)"):
        read_pixel_encoder(path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_pixel_encoder(tmp_path / "none.pth")

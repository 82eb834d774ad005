from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.checkpoints.files import FINAL, LATEST, NNUNET_WEIGHTS, save_checkpoint
from nnssl.core.errors import UserError
from nnssl.methods.registry import get_method
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.weights import check_state, write_nnunet_weights
from tests.networks.helpers import build_network, fpn_configuration, unet_configuration
from tests.pretrainings import CT_JSON, checkpoint_content, tiny_plans

STRIDES, FEATURES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [4, 6, 8]
NETWORKS = {
    "plain": unet_configuration("PlainConvUNet", STRIDES, FEATURES),
    "residual": unet_configuration("ResidualEncoderUNet", STRIDES, FEATURES),
    "fpn": fpn_configuration(3, 4),
}


def _content(network: str) -> dict[str, Any]:
    return checkpoint_content(tiny_plans("P", **NETWORKS[network]), CT_JSON)


def _loaded_by_nnunet(file: Path, content: dict[str, Any]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network of 4 classes as stock training has it, after `-pretrained_weights`, and its values before."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    torch.manual_seed(99)
    network = build_network(content["plans"], "3d_fullres", 4)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_pretrained_weights(network, str(file))
    return network, before


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_write_nnunet_weights__stock_loader_gets_the_pretrained_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, network: str, levels: str
) -> None:
    monkeypatch.setattr(Vox2vec, "levels", levels)
    content = _content(network)
    save_checkpoint(content, tmp_path / FINAL)
    with caplog.at_level(logging.INFO, logger="nnssl"):
        file = write_nnunet_weights(tmp_path)
    assert file == tmp_path / NNUNET_WEIGHTS and {f.name for f in tmp_path.iterdir()} == {FINAL, NNUNET_WEIGHTS}
    stored = torch.load(tmp_path / NNUNET_WEIGHTS, weights_only=True)["network_weights"]
    loaded, before = _loaded_by_nnunet(tmp_path / NNUNET_WEIGHTS, content)

    prefix = "backbone." if network == "fpn" else "backbone.network."
    given = {k[len(prefix) :]: v for k, v in content["method_state"].items() if k.startswith(prefix)}
    encoder = ("first_conv", "left_", "down_", "bottom_") if network == "fpn" else ("encoder.", "decoder.encoder.")
    pretrained, fresh = set(), set()
    for name, tensor in loaded.state_dict().items():
        own = name.removeprefix("backbone.")
        if ".seg_layers." in name:
            assert torch.equal(tensor, before[name]), name  # nnU-Net's own
        elif levels == "decoder" or own.startswith(encoder):
            assert torch.equal(tensor, given[own]), name
            pretrained.add(tensor.data_ptr())
        else:
            assert torch.equal(tensor, stored[name]), name
            assert not (tensor.is_floating_point() and torch.equal(tensor, given[own])), name
            fresh.add(tensor.data_ptr())
    assert pretrained and bool(fresh) == (levels == "encoder")
    assert all(not torch.equal(stored[k], given[k]) for k in stored if ".seg_layers." in k and k in given)
    assert f"{len(pretrained)} tensors" in caplog.text


def test_write_nnunet_weights__the_rest_is_fresh_and_the_same_again(tmp_path: Path) -> None:
    content = _content("plain")
    save_checkpoint(content, tmp_path / FINAL)
    torch.manual_seed(5)
    write_nnunet_weights(tmp_path)
    first = torch.load(tmp_path / NNUNET_WEIGHTS, weights_only=True)["network_weights"]
    drawn = torch.rand(1)
    write_nnunet_weights(tmp_path)
    second = torch.load(tmp_path / NNUNET_WEIGHTS, weights_only=True)["network_weights"]
    assert all(torch.equal(first[k], second[k]) for k in first)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # nobody else's random numbers are touched


def test_write_nnunet_weights__none_where_more_depends_on_the_number_of_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"strides": [[1, 1, 1], [8, 8, 8]], "input_shape": [16, 16, 16], "embed_dim": 12, "eva_depth": 1,
             "eva_numheads": 1}  # fmt: skip
    architecture = {"network_class_name": "nnssl.networks.primus.Primus", "arch_kwargs": sizes}
    save_checkpoint(checkpoint_content(tiny_plans("P", architecture=architecture), CT_JSON, "mae"), tmp_path / FINAL)
    with caplog.at_level(logging.INFO, logger="nnssl"):
        assert write_nnunet_weights(tmp_path) is None
    assert "up_projection" in caplog.text and [f.name for f in tmp_path.iterdir()] == [FINAL]


@pytest.mark.parametrize("damage", ["nothing", "one missing", "shape", "copies"])
def test_write_nnunet_weights__refuses_and_leaves_no_file(tmp_path: Path, damage: str) -> None:
    content = _content("plain")
    state, name = content["method_state"], "backbone.network.encoder.stages.0.0.convs.0.conv.weight"
    message = "does not hold the network of its own plans"
    if damage == "nothing":
        content["method_state"] = {f"other.{k}": v for k, v in state.items()}
    elif damage == "one missing":
        del state[name]
    elif damage == "shape":
        state[name] = torch.zeros(4, 2, 3, 3, 3)
    else:
        copy = name.replace("network.encoder", "network.decoder.encoder")
        state[copy], message = state[copy] + 1, "two different values for decoder.encoder.stages.0.0.convs.0.conv"
    save_checkpoint(content, tmp_path / FINAL)
    with pytest.raises(UserError, match=message):
        write_nnunet_weights(tmp_path)
    assert not (tmp_path / NNUNET_WEIGHTS).exists()


def test_check_state__refuses_networks_of_an_earlier_version() -> None:
    with torch.device("meta"):
        method = get_method("vox2vec")
        built = method(FPN3d(1, 4, 3), method.config_class())
    state, path = built.state_dict(), Path("run", LATEST)
    check_state(built, state, path)
    without = {name: tensor for name, tensor in state.items() if not name.startswith("head.0.")}
    for other in (without, {**state, "gone": torch.zeros(1)}, {**state, "head.0.weight": torch.zeros(1, 2)}):
        with pytest.raises(UserError, match=rf"{LATEST}.*(head\.0\.weight|gone).*-pretrained"):
            check_state(built, other, path)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnssl
from nnssl.checkpoints.files import FINAL, load_checkpoint, save_checkpoint
from nnssl.checkpoints.pretrained import read_pretrained
from nnssl.core.errors import UserError
from nnssl.methods.options import from_plain
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import gather_voxels
from tests.phantoms import ct_volume, write_volume
from tests.pretrainings import tiny_plans, write_pretraining
from tests.runs import fpn_plans

FPN = fpn_plans()["configurations"]["3d_fullres"]["architecture"]
SWIN = {
    "network_class_name": "nnssl.networks.swin.SwinUNETR",
    "arch_kwargs": {"strides": [[1, 1, 1]] + [[2, 2, 2]] * 5, "feature_size": 12},
    "_kw_requires_import": [],
}
VIT = {
    "network_class_name": "nnssl.networks.vit.UNETR",
    "arch_kwargs": {"strides": [[1, 1, 1]] + [[2, 2, 2]] * 4, "image_size": [32, 32, 32], "feature_size": 2,
                    "hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "num_layers": 4},
    "_kw_requires_import": [],
}  # fmt: skip


@pytest.mark.parametrize("method", method_names())
def test_load_pretrained__holds_what_every_method_learned(tmp_path: Path, method: str) -> None:
    patch = [32, 64, 64] if method == "voco" else [16, 32, 32]
    checkpoint = write_pretraining(tmp_path, tiny_plans(patch_size=patch), method=method)
    model = nnssl.load_pretrained(checkpoint.parent)
    content = load_checkpoint(checkpoint)
    own = model.backbone.state_dict()
    assert own.keys() == {n[len("backbone.") :] for n in content["method_state"] if n.startswith("backbone.")}
    assert all(torch.equal(content["method_state"][f"backbone.{name}"], value) for name, value in own.items())
    kind = get_method(method)
    pretrained = kind(build_backbone(content["plans"], "3d_fullres", kind.levels),
                      from_plain(kind.config_class, content["config"]))  # fmt: skip
    assert model.backbone.finest == pretrained.backbone.finest  # SAM: what it never trained is left out
    x = torch.randn(2, 1, 17, 40, 33)  # divisible by nothing
    pyramid = model(x)
    assert [level.shape[1] for level in pyramid] == list(model.channels)
    for level, stride in zip(pyramid, model.strides, strict=True):
        assert level.shape[2:] == tuple(-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True))
        assert level.numel() and not level.requires_grad
    assert model.patch_size == tuple(patch) and model.method == method and model.path == checkpoint
    assert (model.orientation, model.configuration, model.plans["plans_name"]) == (
        "LPS",
        "3d_fullres",
        "nnsslPlans_tiny",
    )


@pytest.mark.parametrize(
    ("architecture", "method"), [(FPN, "vox2vec"), (SWIN, "mae"), (VIT, "mae")], ids=["fpn", "swin", "vit"]
)
def test_load_pretrained__takes_every_network(tmp_path: Path, architecture: dict[str, Any], method: str) -> None:
    plans = tiny_plans(patch_size=[32, 64, 64], architecture=architecture)  # four blocks of a Swin transformer
    model = nnssl.load_pretrained(write_pretraining(tmp_path, plans, method=method))
    for size in ((32, 32, 64), (40, 70, 33)):  # ViT: position embeddings of another size; Swin: not divisible
        features = model.dense(torch.randn(1, 1, *size))
        assert features.shape == (1, sum(model.channels), *size) and bool(features.isfinite().all())


def test_dense__a_voxel_takes_the_cells_that_it_lies_in(tmp_path: Path) -> None:
    model = nnssl.load_pretrained(write_pretraining(tmp_path, tiny_plans()))
    x = torch.randn(2, 1, 17, 24, 21)
    voxels = torch.tensor([[0, 0, 0, 0], [1, 16, 23, 20], [0, 7, 8, 15], [1, 3, 19, 9]])
    batch, z, y, x_ = voxels.unbind(1)
    expected = gather_voxels(model(x), model.strides, voxels)
    torch.testing.assert_close(model.dense(x)[batch, :, z, y, x_], expected, rtol=0, atol=0)


def test_pooled__is_the_mean_of_each_level(tmp_path: Path) -> None:
    model = nnssl.load_pretrained(write_pretraining(tmp_path, tiny_plans()))
    x = torch.randn(2, 1, 17, 24, 21)
    expected = torch.cat([level.mean((2, 3, 4)) for level in model(x)], 1)
    torch.testing.assert_close(model.pooled(x), expected)


def test_train__changes_nothing(tmp_path: Path) -> None:
    plans = tiny_plans(architecture=FPN)  # with batch normalisation
    model = nnssl.load_pretrained(write_pretraining(tmp_path, plans))
    x, before = torch.randn(1, 1, 16, 16, 16), model.fingerprint
    first = model(x)
    torch.nn.Sequential(model).train()
    assert all(torch.equal(a, b) for a, b in zip(first, model(x), strict=True))
    del model.__dict__["fingerprint"]
    assert model.fingerprint == before and not any(p.requires_grad for p in model.parameters())


def test_prepare__gives_what_the_model_takes(tmp_path: Path) -> None:
    model = nnssl.load_pretrained(write_pretraining(tmp_path, tiny_plans()))
    volume, _ = ct_volume((20, 36, 36), np.random.default_rng(0))
    write_volume(tmp_path / "a_0000.nii.gz", volume, (3.0, 1.5, 1.5))
    image = model.prepare(tmp_path / "a")
    assert image.values.shape == (1, 20, 36, 36) and image.body is None
    assert model.pooled(torch.from_numpy(image.values)[None]).shape == (1, sum(model.channels))


def test_forward__refuses_other_tensors(tmp_path: Path) -> None:
    model = nnssl.load_pretrained(write_pretraining(tmp_path, tiny_plans()))
    for x in (torch.zeros(1, 2, 16, 16, 16), torch.zeros(1, 16, 16, 16)):
        with pytest.raises(UserError, match=r"takes a tensor \(B, 1, Z, Y, X\)"):
            model(x)
    with pytest.raises(UserError, match="leaves one voxel at the coarsest level"):
        model(torch.zeros(1, 1, 8, 8, 8))


def test_load_pretrained__a_mistake_is_named(tmp_path: Path) -> None:
    checkpoint = write_pretraining(tmp_path, tiny_plans())
    with pytest.raises(UserError, match="no finished run"):
        nnssl.load_pretrained(tmp_path)
    with pytest.raises(UserError, match="no device 'tpu'"):
        nnssl.load_pretrained(checkpoint, "tpu")
    content = load_checkpoint(checkpoint)
    name = next(n for n in content["method_state"] if n.startswith("backbone."))
    del content["method_state"][name]
    save_checkpoint(content, checkpoint)
    with pytest.raises(UserError, match="does not hold the network of its own plans"):
        nnssl.load_pretrained(checkpoint)
    assert read_pretrained(checkpoint).path.name == FINAL

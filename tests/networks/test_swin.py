from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.build import build_backbone
from nnssl.networks.heads import LinearHead, NonLinearHead
from nnssl.networks.monai_parts import monai_name
from nnssl.networks.pyramid import BlockMask
from nnssl.networks.swin import SwinPyramid, SwinUNETR
from tests.networks.helpers import build_network, count_parameters, load_reference, state_dict_shapes

REFERENCE = load_reference("voco.json")
STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 5]
TINY: dict[str, Any] = {"feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 2}


def _meta(kind: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(*arguments, **options)


def _of_monai(kind: Any, **options: Any) -> Any:
    """MONAI's network, whose release 1.4 asks for an image size, which it only checks, and knows windows of 7 alone."""
    known = inspect.signature(kind).parameters
    old = {"img_size": (32, 32, 64)} if "img_size" in known else {}
    return kind(**{name: value for name, value in options.items() if name in known}, **old, use_v2=True)


def _configuration(**arguments: Any) -> dict[str, Any]:
    return {
        "patch_size": [32, 32, 64],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {
            "network_class_name": "nnssl.networks.swin.SwinUNETR",
            "arch_kwargs": {"strides": STRIDES, **TINY, **arguments},
            "_kw_requires_import": [],
        },
    }


def _plans(**arguments: Any) -> dict[str, Any]:
    return {"configurations": {"3d_fullres": _configuration(**arguments)}}


def test_swin_pyramid__has_the_published_student() -> None:
    expected = REFERENCE["param_counts"]["student"]
    pyramid = _meta(SwinPyramid)
    parts = {name: count_parameters(getattr(pyramid, name)) for name in ("swinViT", "encoder1", "encoder2", "encoder3",
                                                                         "encoder4", "encoder10")}  # fmt: skip
    assert parts.pop("swinViT") == expected["swinViT"] and sum(parts.values()) == expected["conv_encoders"]
    student = _meta(VoCo, pyramid, VoCoConfig(patch_size=(64, 64, 64), batch_size=2))
    assert count_parameters(student.head) == expected["proj_head"]
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert trained == expected["params"] == 63_918_194
    assert pyramid.channels == (48, 48, 96, 192, 768) and sum(pyramid.channels) == 1152
    assert pyramid.strides == tuple((s, s, s) for s in (1, 2, 4, 8, 32))


def test_swin_pyramid__has_the_names_and_shapes_of_the_official_student() -> None:
    official = {k: v for k, v in REFERENCE["student_state_dict"].items() if not k.startswith("proj_head.")}
    used = {name: list(tensor.shape) for name, tensor in _meta(SwinPyramid).used_tensors().items()}
    assert used == official and len(used) == 145


def test_swin_unetr__is_monais_and_takes_145_of_167_entries_from_the_student() -> None:
    from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
    from torch.overrides import TorchFunctionMode

    class LinspaceOnCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **{**(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {})})

    expected = REFERENCE["param_counts"]["downstream"]
    network = _meta(SwinUNETR, 1, 14, strides=STRIDES)
    with torch.device("meta"), LinspaceOnCpu():
        official = _of_monai(MonaiSwinUNETR, in_channels=1, out_channels=14, feature_size=48)
    state = network.state_dict()
    assert {monai_name(k): list(v.shape) for k, v in state.items()} == state_dict_shapes(official)
    assert count_parameters(network) == expected["params"] == 72_762_656 and len(state) == expected["keys"] == 167
    student = {f"backbone.{name}": tensor for name, tensor in _meta(SwinPyramid).used_tensors().items()}
    filled = {name: tensor for name, tensor in state.items() if name in student}
    assert all(tensor.shape == student[name].shape for name, tensor in filled.items())
    assert len(filled) == expected["keys_filled_from_voco_student"] == 145
    assert sum(tensor.numel() for tensor in filled.values()) == expected["params_filled"]


def test_swin_unetr__computes_what_monais_computes() -> None:
    from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR

    torch.manual_seed(0)
    options = TINY if "window_size" in inspect.signature(MonaiSwinUNETR).parameters else {**TINY, "window_size": 7}
    mine = SwinUNETR(1, 3, strides=STRIDES, **options).eval()
    official = _of_monai(MonaiSwinUNETR, in_channels=1, out_channels=3, **options).eval()
    official.load_state_dict({monai_name(name): tensor for name, tensor in mine.state_dict().items()})
    x = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        logits, expected = mine(x), official(x)
    assert logits.shape == (1, 3, 32, 32, 64)
    torch.testing.assert_close(logits, expected)


def test_swin_pyramid__reads_axes_in_the_order_of_the_weights_it_was_given() -> None:
    torch.manual_seed(0)
    given = SwinPyramid(**TINY, levels="decoder").eval()
    turned = SwinPyramid(**TINY, levels="decoder", axes="xyz").eval()
    state = given.state_dict()
    kernels = {n for n, t in state.items() if t.ndim == 5 and not n.startswith("swinViT.")}
    turned.load_state_dict({n: t.permute(0, 1, 4, 3, 2) if n in kernels else t for n, t in state.items()})
    x = torch.randn(2, 1, 32, 64, 64)
    hidden = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0, 1], hidden[1, 0, 1, 1] = True, True
    visible = (~hidden).flatten(1).nonzero()[:, 1].view(2, -1)
    hidden_turned = hidden.transpose(1, 3)
    visible_turned = (~hidden_turned).flatten(1).nonzero()[:, 1].view(2, -1)
    with torch.no_grad():
        pairs = [*zip(given(x[:1]), turned(x[:1].transpose(2, 4)), strict=True)]
        expected = given.masked_levels(x, BlockMask(hidden, visible))
        found = turned.masked_levels(x.transpose(2, 4), BlockMask(hidden_turned, visible_turned))
    for mine, other in [*pairs, *zip(expected, found, strict=True)]:
        torch.testing.assert_close(mine, other.transpose(2, 4), rtol=1e-5, atol=1e-5)


def test_six_cell_merging__reads_two_cells_twice_and_two_never() -> None:
    pyramid = SwinPyramid(**TINY, merging="six_cells")
    merging: Any = pyramid.swinViT.layers1[0].downsample
    monais: Any = SwinPyramid(**TINY).swinViT.layers1[0].downsample
    assert state_dict_shapes(merging) == state_dict_shapes(monais)
    cells = torch.zeros(1, 2, 2, 2, 12).requires_grad_()
    merging.norm = torch.nn.Identity()
    torch.nn.init.ones_(merging.reduction.weight)
    merging(cells).sum().backward()
    read = cells.grad[0, ..., 0] / 24  # type: ignore[index]
    assert read.tolist() == [[[1, 2], [2, 0]], [[1, 1], [0, 1]]]


def test_swin_pyramid__refuses_an_unknown_order_of_axes() -> None:
    with pytest.raises(UserError, match="zyx or xyz"):
        SwinPyramid(**TINY, axes="xzy")  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_swin_pyramid__maps_have_the_stated_channels_and_strides(levels: Any) -> None:
    torch.manual_seed(0)
    pyramid = SwinPyramid(2, **TINY, levels=levels)
    x = torch.randn(1, 2, 32, 64, 32)
    maps = pyramid(x)
    for feature_map, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert feature_map.shape == (1, channels, 32 // stride[0], 64 // stride[1], 32 // stride[2])
    sum(feature_map.square().mean() for feature_map in maps).backward()
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, _ in pyramid.named_parameters() if name.startswith(pyramid.unused)}
    assert silent == {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert bool(silent) == (levels == "encoder")
    for head in (LinearHead, NonLinearHead):
        logits = head(pyramid.channels, pyramid.strides, 3).eval()([m.detach() for m in maps])
        assert logits.shape == (1, 3, 32, 64, 32)


def test_swin_pyramid__recomputing_changes_neither_values_nor_gradients() -> None:
    torch.manual_seed(0)
    plain, recomputed = SwinPyramid(**TINY), SwinPyramid(**TINY, use_checkpoint=True)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 32, 32, 64)
    gradients = []
    for pyramid in (plain, recomputed):
        pyramid(x)[-1].square().sum().backward()
        gradients.append(pyramid.swinViT.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("patch", [(64, 64, 64), (32, 32, 64), (96, 32, 64)])
def test_check_patch__accepts(patch: tuple[int, ...]) -> None:
    _meta(SwinPyramid, **TINY).check_patch(patch)


@pytest.mark.parametrize(
    ("patch", "advice"),
    [((32, 32, 32), "32,32,64"), ((48, 64, 64), "64,64,64"), ((16, 16, 16), "32,32,64"), ((64, 64, 65), "64,64,96")],
)
def test_check_patch__refuses_and_names_one_that_fits(patch: tuple[int, ...], advice: str) -> None:
    pyramid = _meta(SwinPyramid, **TINY)
    with pytest.raises(UserError, match=f"use .*{advice}"):
        pyramid.check_patch(patch)
    pyramid.check_patch([int(n) for n in advice.split(",")])


@pytest.mark.parametrize(
    "arguments", [{"feature_size": 20}, {"depths": (2, 2, 2)}, {"num_heads": (3, 6, 12)}], ids=lambda a: next(iter(a))
)
def test_swin_pyramid__refuses_numbers_that_do_not_fit(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"multiple of 12|four stages"):
        _meta(SwinPyramid, **{**TINY, **arguments})


def test_build__plans_give_the_network_and_its_pyramid() -> None:
    network = _meta(build_network, _plans(), "3d_fullres", 5)
    assert isinstance(network, SwinUNETR) and not network.decoder.deep_supervision
    backbone = _meta(build_backbone, _plans(), "3d_fullres", "encoder")
    assert isinstance(backbone, SwinPyramid) and backbone.levels == "encoder"
    assert state_dict_shapes(network.backbone) == state_dict_shapes(backbone)
    for build in (lambda p: build_backbone(p, "3d_fullres", "encoder"), lambda p: build_network(p, "3d_fullres", 2)):
        with pytest.raises(UserError, match="strides"):
            _meta(build, _plans(strides=[[1, 1, 1], [2, 2, 2]]))


def test_swin_unetr__stock_nnunet_trains_it_with_deep_supervision() -> None:
    architecture = _configuration()["architecture"]
    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], [], 1, 3, deep_supervision=True
    )
    x = torch.randn(1, 1, 32, 32, 64)
    scales = 1 / np.cumprod(np.vstack(STRIDES), axis=0)[:-1]  # as nnUNetTrainer counts its targets
    targets = [torch.zeros(1, 3, *(round(n * s) for n, s in zip((32, 32, 64), scale, strict=True))) for scale in scales]
    weights = np.array([1, 1 / 2, 1 / 4, 1 / 8, 0]) / 1.875
    outputs = network(x)
    loss = DeepSupervisionWrapper(torch.nn.MSELoss(), weights)(outputs, targets)
    assert loss.item() == pytest.approx(8 / 15 * outputs[0].square().mean().item())
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), outputs[0], rtol=0, atol=0)


def test_import__monai_is_not_imported_before_a_network_is_built() -> None:
    code = "import sys, nnssl.networks.build, nnssl.methods.voco.method; print('monai' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize("missing", ["monai.networks.nets.swin_unetr", "einops"])
def test_swin_pyramid__missing_monai_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install .*monai.* einops"):
        SwinPyramid(**TINY)

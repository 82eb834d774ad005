from __future__ import annotations

import json
import os
import pydoc
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.core.errors import UserError
from nnssl.data.presets import presets
from nnssl.networks.build import backbone_of, build_backbone, pretrained_part, segmentation_of
from nnssl.networks.trusted import VARIABLE, trusted_network
from tests.foreign_plans import SAID, give_command
from tests.networks.helpers import build_network, fpn_configuration, unet_configuration

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
MODULE = """
import os
import torch

class Own(torch.nn.ReLU):
    pass

class Net(torch.nn.Identity):
    pass

own = Own()
open({marker!r}, "w").close()
"""


WALK = "torch.nn.modules.module.torch.os.system"


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """nnU-Net's search for networks that have moved, without the seconds that importing all of them takes."""
    from dynamic_network_architectures.architectures import unet
    from nnunetv2.utilities import find_class_by_name

    asked: list[str] = []

    def search(folder: str, name: str, module: str) -> Any:
        assert Path(folder).parts[-2:] == ("dynamic_network_architectures", "architectures")
        assert module == "dynamic_network_architectures.architectures"
        asked.append(name)
        return getattr(unet, name, None)

    monkeypatch.setattr(find_class_by_name, "recursive_find_python_class", search)
    return asked


def _unet(kind: str = "PlainConvUNet", **arguments: Any) -> dict[str, Any]:
    configuration = unet_configuration(kind, STRIDES, [4, 6, 8])
    configuration["architecture"]["arch_kwargs"] |= arguments
    return configuration


def _named(name: Any) -> dict[str, Any]:
    configuration = _unet()
    configuration["architecture"]["network_class_name"] = name
    return configuration


@pytest.mark.parametrize("key", ["conv_op", "norm_op", "dropout_op", "nonlin"])
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "builtins.eval",
        "eval",
        "subprocess.Popen",
        "importlib.import_module",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.module.torch.os.system",  # by modules that are imported there
        "torch.nn.parallel.distributed.os.system",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.modules.container.OrderedDict",  # a class of another package
        "torch.nn.modules.module.Module.__init__.__globals__",
        "torch.nn.functional.relu",  # a function
        "torch.nn.init.constant_",
        "torch.nn.Parameter",  # no module
        "torch.nn",  # no class
        "torch.nn.modules.conv",
        "torch.nn.NoSuchLayer",
        "torch.nn.no.such.layer",
        "torch.nnssl.Layer",
        "torch..nn.ReLU",
        "torch.nn.ReLU ",
        "monai.networks.blocks.Convolution",  # a network's part, and no operation
        "dynamic_network_architectures.architectures.unet.nn.ReLU",
        "",
        ".",
        7,
        ["torch.nn.ReLU"],
        {"torch.nn.ReLU": 1},
    ],
)
def test_trusted_network__operations_are_module_classes_of_torch(key: str, name: Any) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(repr(name))} as {key}.*export {VARIABLE}="):
        trusted_network(_unet(**{key: name}))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.modules.module.torch.os.system",
        "nnssl.networks.build.torch.load",
        "nnssl.networks.build.build_backbone",
        "nnssl.core.errors.UserError",
        "dynamic_network_architectures.architectures.unet.UNetDecoder.__init__",
        "dynamic_network_architectures.architectures.unet.Union",
        "monai.bundle.ConfigParser",
        "somewhere.PlainConvUNet",  # nnU-Net would import somewhere first
        "eval",
        "nn",  # what the modules of the architectures import
        None,
        3,
    ],
)
def test_trusted_network__networks_are_module_classes_of_known_packages(name: Any, moved: list[str]) -> None:
    with pytest.raises(UserError, match="network_class_name"):
        trusted_network(_named(name))


def test_trusted_network__an_instance_is_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.modules.activation, "made", nn.ReLU(), raising=False)
    with pytest.raises(UserError, match="it is a ReLU"):
        trusted_network(_unet(nonlin="torch.nn.modules.activation.made"))


def test_trusted_network__says_where_the_plans_come_from_and_what_the_name_is() -> None:
    with pytest.raises(UserError, match=r"the plans in /a/b.pth name 'torch.nn.functional.relu' as nonlin.*function"):
        trusted_network(_unet(nonlin="torch.nn.functional.relu"), "/a/b.pth")
    with pytest.raises(UserError, match=rf"the class OrderedDict of collections.*{VARIABLE}=ITS_MODULE$"):
        trusted_network(_unet(nonlin="torch.nn.modules.container.OrderedDict"))
    with pytest.raises(UserError, match=rf"{VARIABLE}=mine.layers$"):
        trusted_network(_unet(nonlin="mine.layers.Layer"))


def test_trusted_network__attribute_lookup_walks_out_of_a_package() -> None:
    assert pydoc.locate(WALK) is os.system  # or the table below would prove nothing
    with pytest.raises(UserError, match="it is the module torch"):
        trusted_network(_unet(nonlin=WALK))


def test_trusted_network__gives_the_full_names_and_changes_nothing(moved: list[str]) -> None:
    given = _unet("ResidualEncoderUNet", nonlin=None, dropout_op="torch.nn.Dropout3d")
    before = deepcopy(given)
    kwargs = trusted_network(given)["architecture"]["arch_kwargs"]
    assert given == before and not moved
    assert (kwargs["nonlin"], kwargs["dropout_op"]) == (None, "torch.nn.modules.dropout.Dropout3d")
    for name in ("PlainConvUNet", "dynamic_network_architectures.architectures.of_before.PlainConvUNet"):
        full = "dynamic_network_architectures.architectures.unet.PlainConvUNet"  # where nnU-Net finds it too
        assert trusted_network(_named(name))["architecture"]["network_class_name"] == full
    assert moved == ["PlainConvUNet"] * 2


def test_trusted_network__a_block_is_part_of_a_network() -> None:
    block = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    configuration = _unet("ResidualEncoderUNet", block=block, bottleneck_channels=[2, 2, 2])
    configuration["architecture"]["_kw_requires_import"].append("block")
    assert segmentation_of(configuration, 2)(torch.zeros(1, 1, 4, 8, 8)).shape == (1, 2, 4, 8, 8)
    configuration["architecture"]["arch_kwargs"]["block"] = "os.system"
    with pytest.raises(UserError, match="as block"):
        segmentation_of(configuration, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": 3}, "network_class_name"),
        ({"architecture": {"arch_kwargs": {}}}, "network_class_name"),
        ({"architecture": {"network_class_name": "torch.nn.Identity"}}, "arch_kwargs"),
        ({"architecture": {"network_class_name": "torch.nn.Identity", "arch_kwargs": []}}, "arch_kwargs"),
        ({"architecture": {"network_class_name": "torch.nn.Identity", "arch_kwargs": {}}}, "_kw_requires_import"),
        (
            {"architecture": {"network_class_name": "a.B", "arch_kwargs": {}, "_kw_requires_import": "nonlin"}},
            "_kw_requires_import",
        ),
        (
            {
                "architecture": {
                    "network_class_name": "torch.nn.Identity",
                    "arch_kwargs": {},
                    "_kw_requires_import": ["x"],
                }
            },
            "x in _kw_requires_import",
        ),
    ],
)
def test_trusted_network__another_form_is_a_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trusted_network({"patch_size": [8, 8, 8], "normalization_schemes": ["a"], **change})


def test_trusted_network__old_plans_name_two_networks() -> None:
    old = {"patch_size": [8, 8, 8], "UNet_class_name": "os.system", "normalization_schemes": ["a"]}
    with pytest.raises(UserError, match=r"os.system.*PlainConvUNet"):
        segmentation_of(old, 2)
    assert trusted_network(old | {"UNet_class_name": "PlainConvUNet"})["UNet_class_name"] == "PlainConvUNet"


def test_segmentation_of__arguments_that_do_not_fit_are_a_sentence() -> None:
    with pytest.raises(UserError, match=r"cannot be built.*colour"):
        segmentation_of(_unet(colour="red"), 2)
    configuration = _unet()
    configuration["architecture"]["_kw_requires_import"].remove("nonlin")  # a text is called then
    with pytest.raises(UserError, match=r"cannot be built.*str"):
        segmentation_of(configuration, 2)


def test_build__nnunet_would_run_the_command(tmp_path: Path) -> None:
    """Or the other tests with these plans would prove nothing."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = give_command(_unet(), tmp_path / "called")["architecture"]
    with pytest.raises(TypeError):  # what os.system returns is no layer
        get_network_from_plans(*architecture.values(), 1, 2)
    assert (tmp_path / "called").exists()


def test_build__every_way_to_a_network_refuses_a_command(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    harmful = give_command(_unet(), marker)
    plans, network = {"configurations": {"3d_fullres": harmful}}, segmentation_of(_unet(), 2)
    for build in (
        lambda: build_network(plans, "3d_fullres", 2),
        lambda: build_backbone(plans, "3d_fullres", "encoder"),
        lambda: segmentation_of(harmful, 2),
        lambda: backbone_of(harmful, "decoder"),
        lambda: pretrained_part(network, harmful, "encoder"),
        lambda: segmentation_of(give_command(fpn_configuration(3, 4), marker), 2),
    ):
        with pytest.raises(UserError, match=SAID):
            build()
    assert not marker.exists()


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current folder, which Python would find; it makes a file when it is imported."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    (tmp_path / "here" / "own_layers_here.py").write_text(MODULE.format(marker=str(tmp_path / "imported")))
    return tmp_path / "imported"


@pytest.mark.usefixtures("moved")
def test_trusted_network__a_module_of_the_current_folder_is_not_imported(own_module: Path) -> None:
    for name in ("own_layers_here.Own", "own_layers_here", "own_layers_here.os.system"):
        for configuration in (_unet(nonlin=name), _named(name)):
            with pytest.raises(UserError, match=VARIABLE):
                segmentation_of(configuration, 2)
    assert not own_module.exists()


def test_trusted_network__classes_of_trusted_modules_pass(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " not_there , own_layers_here")
    network = segmentation_of(_unet(nonlin="own_layers_here.Own"), 2)
    assert own_module.exists() and any(type(m).__name__ == "Own" for m in network.modules())
    assert type(segmentation_of(_named("own_layers_here.Net"), 2)).__name__ == "Net"
    for name in ("own_layers_here.os.system", "own_layers_here.own", "own_layers_here_too.Own"):
        with pytest.raises(UserError, match=VARIABLE):
            segmentation_of(_unet(nonlin=name), 2)
    with pytest.raises(UserError, match=r"not_there.Own.*cannot be imported.*not_there"):
        segmentation_of(_unet(nonlin="not_there.Own"), 2)


def test_trusted_network__classes_of_the_users_trainers_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    marker = tmp_path / "imported"
    (tmp_path / "second" / "nnUNetTrainer_WithOwnLayers.py").write_text(MODULE.format(marker=str(marker)))
    (tmp_path / "second" / "json.py").write_text("class Own: pass")  # a name that Python has in use
    configuration = _unet(nonlin="nnUNetTrainer_WithOwnLayers.Own")
    with pytest.raises(UserError, match=VARIABLE):
        segmentation_of(configuration, 2)
    monkeypatch.setenv("nnUNet_extTrainer", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert not marker.exists()
    network = segmentation_of(configuration, 2)
    assert any(type(m).__name__ == "Own" for m in network.modules())
    for name in ("nnUNetTrainer_WithOwnLayers.os.system", "json.JSONDecoder", "json.Own"):
        with pytest.raises(UserError, match=VARIABLE):
            segmentation_of(_unet(nonlin=name), 2)


@pytest.mark.parametrize("name", sorted(presets()))
def test_trusted_network__presets_pass(name: str) -> None:
    plans = json.loads(presets()[name].read_text())
    for configuration in plans["configurations"].values():
        assert "architecture" in configuration
        trusted_network(configuration)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.interchange.families import primus
from nnssl.networks.build import segmentation_of
from tests.interchange.files import assert_same_maps, decoder_maps, imported, randomised, saved
from tests.networks.helpers import unet_configuration

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def _network(kind: str) -> tuple[Any, dict[str, Any]]:
    """A network, and how an adaptation plan describes it."""
    made = unet_configuration(kind, STRIDES, [2, 4, 6])
    described = made["architecture"]
    plan = {"arch_class_name": kind, "arch_kwargs": described["arch_kwargs"],
            "arch_kwargs_requiring_import": described["_kw_requires_import"]}  # fmt: skip
    return randomised(segmentation_of(made, 2)), plan


def _checkpoint(
    weights: dict[str, Tensor], architecture: dict[str, Any], dataset: str = "Dataset745_OpenMind"
) -> dict[str, Any]:
    """The form that nnU-Net's development version exchanges; the plan is as short as it may be."""
    configuration = {
        "spacing": [1, 1, 1],
        "patch_size": [64, 64, 64],
        "use_mask_for_norm": False,
        "resampling_fn_data": "of_another_program",
        "resampling_fn_data_kwargs": {"mode": "x"},
    }
    plan = {"architecture_plans": architecture,
            "pretrain_plan": {"dataset_name": dataset, "configurations": {"onemmiso": configuration}},
            "pretrain_num_input_channels": 1, "recommended_downstream_patchsize": [16, 16, 32],
            "key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem", "key_to_lpe": None,
            "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]}  # fmt: skip
    return {"network_weights": weights, "nnssl_adaptation_plan": plan, "trainer_name": "BaseMAETrainer",
            "init_args": {"plan": {}, "configuration_name": "onemmiso"},
            "citations": [{"type": "method", "name": "MAE", "apa_citations": ["He et al. 2022"]}]}  # fmt: skip


Pick = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def _encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.startswith("encoder.")}


def _sparse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    other = {f"architecture.{k}": v.clone() for k, v in state.items()}
    return {**other, **_encoder(state), "mask_token": torch.zeros(3)}


def _without_skips(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v[:, :1] if k.startswith("decoder.stages") and v.ndim == 5 else v for k, v in state.items()}


@pytest.mark.parametrize(
    ("kind", "pick", "levels"),
    [
        ("ResidualEncoderUNet", _whole, "decoder"),
        ("PlainConvUNet", _whole, "decoder"),
        ("ResidualEncoderUNet", _sparse, "decoder"),
        ("ResidualEncoderUNet", _encoder, "encoder"),
        ("ResidualEncoderUNet", _without_skips, "encoder"),
    ],
)
def test_exchange__the_imported_network_gives_the_same_maps(
    kind: str, pick: Pick, levels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, plan = _network(kind)
    weights = pick(dict(network.state_dict()))
    run = imported(saved(_checkpoint(weights, plan), tmp_path / "openmind"), tmp_path, monkeypatch)
    assert run.about["levels"] == levels and run.about["licence"] == "CC BY 4.0"
    assert run.about["citation"] == "He et al. 2022"
    assert run.about["tensors_mapped"] + run.about["tensors_left"] == len(weights)
    maps: Callable[[Tensor], list[Tensor]] = network.encoder
    assert_same_maps(run.folder, maps if levels == "encoder" else lambda x: decoder_maps(network, x), (8, 16, 12))


def test_exchange__the_plan_may_be_beside_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    import json

    from safetensors.torch import save_file

    network, plan = _network("PlainConvUNet")
    content = _checkpoint({}, plan, "Dataset1_nnFoundation")
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({k: v.clone() for k, v in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "adaptation_plan.json").write_text(json.dumps(content["nnssl_adaptation_plan"]))
    run = imported(folder, tmp_path, monkeypatch)
    assert run.about["licence"] == "CC BY-SA 4.0"
    assert_same_maps(run.folder, lambda x: decoder_maps(network, x), (8, 16, 12))


def test_exchange__two_values_for_one_tensor_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, plan = _network("PlainConvUNet")
    state = dict(network.state_dict())
    name = next(k for k in state if k.startswith("decoder.encoder.") and k.endswith("conv.weight"))
    state[name] = state[name] + 1
    with pytest.raises(UserError, match=r"two different values.*decoder.encoder"):
        imported(saved(_checkpoint(state, plan), tmp_path / "w"), tmp_path, monkeypatch)


@pytest.mark.parametrize(("name", "known"), [("Mystery", "ResEncL"), ("PrimusV2M", "PrimusM")])
def test_exchange__other_networks_are_refused(
    name: str, known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    file = saved(_checkpoint(nn.Linear(2, 2).state_dict(), plan), tmp_path / "w")
    with pytest.raises(UserError, match=rf"the network {name}.*{known}"):
        imported(file, tmp_path, monkeypatch)


@pytest.mark.parametrize(("place", "value"), [
    ("architecture_plans", 3), ("architecture_plans.arch_class_name", None),
    ("architecture_plans.arch_kwargs_requiring_import", "conv_op"), ("pretrain_plan", None),
    ("pretrain_plan.configurations", []), ("pretrain_plan.configurations", {"a": {"spacing": [1, 1]}}),
    ("pretrain_plan.transpose_forward", [0, 0, 0]), ("pretrain_num_input_channels", 10**9),
    ("recommended_downstream_patchsize", [0, 16, 16]), ("pretrain_patch_size", "x"),
])  # fmt: skip
def test_exchange__a_damaged_plan_is_one_sentence(
    place: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    content = _checkpoint(nn.Linear(2, 2).state_dict(), plan)
    *outer, key = place.split(".")
    inner = content["nnssl_adaptation_plan"]
    for name in outer:
        inner = inner[name]
    inner[key] = value
    with pytest.raises(UserError, match=rf"adaptation plan: {place}.*take another copy"):
        imported(saved(content, tmp_path / "w"), tmp_path, monkeypatch)


@pytest.mark.parametrize("wrapper", ["", "encoder."])
def test_exchange__primus_gives_the_same_tokens(wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnssl.networks.primus")
    from dynamic_network_architectures.architectures.primus import Primus

    monkeypatch.setitem(primus.SIZES, "PrimusM", (24, 2, 2))
    network: Any = Primus(1, 24, (8, 8, 8), 2, 2, 2, (16, 16, 32), init_values=0.1, scale_attn_inner=True)
    randomised(network)
    state = {f"{wrapper}{name}": tensor for name, tensor in network.state_dict().items()}
    plan = {"arch_class_name": "PrimusM", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    content = _checkpoint(state, plan)
    content["nnssl_adaptation_plan"] |= {"key_to_encoder": f"{wrapper}eva", "pretrain_patch_size": [16, 16, 32]}
    run = imported(saved(content, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["levels"] == "encoder" and run.about["tensors_left"] == len(
        [name for name in state if "up_projection" in name or name.endswith("mask_token")]
    )

    def tokens(x: Tensor) -> list[Tensor]:
        made = network.eva(network.down_projection(x).flatten(2).mT)[0]
        return [made.mT.unflatten(2, (2, 2, 4))]

    assert_same_maps(run.folder, tokens, (16, 16, 32))

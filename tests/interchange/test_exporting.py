"""Exported folders: what is in them, that they are read as the run, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import nnssl
from nnssl.checkpoints.files import load_checkpoint, save_checkpoint
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.errors import UserError
from nnssl.core.files import WRITING
from nnssl.features.model import load_pretrained
from nnssl.interchange.exporting import FORMATS, export
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration, segmentation_of
from tests.pretrainings import tiny_plans, write_pretraining
from tests.runs import same_content

RESIDUAL = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [4, 6, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_blocks_per_stage": [1, 2, 2],
        "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip
FPN = {
    "network_class_name": "nnssl.networks.fpn_unet.FPN3dUNet",
    "arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "base_channels": 4, "num_scales": 3},
    "_kw_requires_import": [],
}


def _run(root: Path, method: str = "vox2vec", **changes: Any) -> Path:
    return write_pretraining(root / "results", tiny_plans(**changes), method=method)


def _heads_loader(file: Path, channels: int = 1) -> tuple[int, int]:
    """nnU-Net's rule: stem and encoder are loaded strictly by the plan's prefixes, a stem of one channel is shared.

    Returns the number of tensors that the encoder and its stem took from the file, and how many they have.
    """
    content = torch.load(file, weights_only=True)
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    assert {"key_to_lpe", "keys_to_in_proj", "pretrain_num_input_channels"} <= plan.keys()
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["spacing"] and configuration["patch_size"] == plan["recommended_downstream_patchsize"]
    described = plan["architecture_plans"]
    architecture = {"network_class_name": described["arch_class_name"], "arch_kwargs": described["arch_kwargs"],
                    "_kw_requires_import": described["arch_kwargs_requiring_import"]}  # fmt: skip
    schemes = ["ZScoreNormalization"] * channels
    network: Any = segmentation_of({"architecture": architecture, "normalization_schemes": schemes}, 5)
    stem = {name: tensor for name, tensor in weights.items() if name.startswith(plan["key_to_stem"])}
    if channels > plan["pretrain_num_input_channels"]:
        shared = stem[plan["keys_to_in_proj"][0] + ".weight"].repeat(1, channels, 1, 1, 1) / channels
        stem.update({f"{name}.weight": shared for name in plan["keys_to_in_proj"]})
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(plan["key_to_encoder"])}
    for prefix, given in ((plan["key_to_encoder"], encoder), (plan["key_to_stem"], stem)):
        network.get_submodule(prefix).load_state_dict({n[len(prefix) + 1 :]: t for n, t in given.items()}, strict=True)
    own = network.encoder.state_dict()
    return sum(torch.equal(tensor, {**weights, **stem}[f"encoder.{name}"]) for name, tensor in own.items()), len(own)


def test_export__nnssl_is_what_nnunets_loader_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = export(_run(tmp_path, "pimpic"), tmp_path / "plain", licence="cc-by-4.0")
    assert _heads_loader(plain / "checkpoint_final.pth") == (64, 64)
    assert "z-score" in caplog.text and "more than 1 channel" in caplog.text
    with pytest.raises(RuntimeError, match="size mismatch"):
        _heads_loader(plain / "checkpoint_final.pth", channels=2)
    run = _run(tmp_path, "unet_mae", name="residual", architecture=RESIDUAL,
               normalization_schemes=["ZScoreNormalization"])  # fmt: skip
    caplog.clear()
    residual = export(run, tmp_path / "residual", licence="mit")
    assert not caplog.text
    assert _heads_loader(residual / "checkpoint_final.pth") == (100, 100)
    assert _heads_loader(residual / "checkpoint_final.pth", channels=2) == (100, 100)
    content = torch.load(residual / "checkpoint_final.pth", weights_only=True)
    plan = json.loads((residual / "adaptation_plan.json").read_text())
    assert plan == content["nnssl_adaptation_plan"] and plan["key_to_stem"] == "encoder.stem"
    assert content["trainer_name"] == "nnssl_unet_mae" and "He, K." in content["citations"][0]["apa_citations"][0]
    assert {file.name for file in residual.iterdir()} == {
        "README.md", "adaptation_plan.json", "checkpoint_final.pth", "config.json"}  # fmt: skip


@pytest.mark.parametrize(("method", "format"), [("lapn", "nnssl"), ("pimpic", "safetensors")])
def test_export__is_read_as_the_run_bitwise(tmp_path: Path, method: str, format: Any) -> None:
    checkpoint = _run(tmp_path, method)
    folder = export(checkpoint, tmp_path / "out", format, licence="apache-2.0")
    content, run = load_checkpoint(checkpoint_of(folder)), load_checkpoint(checkpoint)
    kept = {name: t for name, t in run["method_state"].items() if name.startswith(("backbone.", "heads."))}
    assert content["method_state"].keys() == kept.keys() and same_content(content["method_state"], kept)
    assert any(name.startswith("heads.") for name in kept) is (method == "lapn")
    assert content["origin"] == {"licence": "apache-2.0"}
    for key in ("method", "config", "configuration", "dataset_json", "orientation", "plans"):
        assert content[key] == run[key]
    own, other = (nnssl.load_pretrained(path) for path in (checkpoint, folder))
    assert own.fingerprint == other.fingerprint
    image = torch.randn(1, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(own(image), other(image), strict=True))
    assert nnssl.load_pretrained(f"random:{folder}").is_random
    again = export(folder, tmp_path / "again", "safetensors" if format == "nnssl" else "nnssl")
    assert same_content(load_checkpoint(checkpoint_of(again))["method_state"], kept)
    assert (again / "README.md").read_text().count("apache-2.0") == 2  # kept without asking


def test_export__other_networks_as_safetensors_alone(tmp_path: Path) -> None:
    checkpoint = _run(tmp_path, architecture=FPN)
    with pytest.raises(UserError, match=r"FPN3dUNet.*export it with -format safetensors"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(f"*{WRITING}"))
    folder = export(checkpoint, tmp_path / "out", "safetensors", licence="mit")
    assert load_pretrained(folder).fingerprint == load_pretrained(checkpoint).fingerprint
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == FPN["network_class_name"] and config["kwargs"] == FPN["arch_kwargs"]
    assert config["levels"] == "decoder" and config["window"] == [[-800.0, 400.0]]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == (folder / "config.json").stat().st_mode & 0o777


def test_export__nnunet_fills_stock_networks(tmp_path: Path) -> None:
    checkpoint = _run(tmp_path, "pimpic")
    folder = export(checkpoint, tmp_path / "out", "nnunet", licence="mit")
    weights = torch.load(folder / "nnunet_weights.pth", weights_only=True)["network_weights"]
    plans = json.loads((folder / "nnsslPlans_tinyFrom_pimpic.json").read_text())
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnsslPlans_tinyFrom_pimpic_3d_fullres"
    network = segmentation_of(resolve_configuration(plans, "3d_fullres"), 2)
    network.load_state_dict(weights)
    run = load_checkpoint(checkpoint)["method_state"]
    assert torch.equal(weights["encoder.stages.0.0.convs.0.conv.weight"],
                       run["backbone.network.encoder.stages.0.0.convs.0.conv.weight"])  # fmt: skip


def test_export__names_no_case_and_no_path(tmp_path: Path) -> None:
    plans = tiny_plans() | {"nnssl": {"checkpoint": "/secret/place.pth"}}
    checkpoint = write_pretraining(tmp_path / "results", plans)
    content = torch.load(checkpoint, weights_only=True)
    content["dataset_json"] |= {"annotated_labels": {"mrs_miller": []}, "description": "of mrs_miller"}
    content["dataset_json"]["modality"] = content["dataset_json"].pop("channel_names")
    content |= {"train_cases": ["Dataset500_Source/mrs_miller", "Dataset500_Source/x"], "val_cases": [], "step": 3,
                "epoch": 1}  # fmt: skip
    torch.save(content, checkpoint)
    probe = {"dataset": "Dataset017_Organs", "train_cases": ["mrs_miller"], "held_out_cases": ["a", "b"],
             "labels": {"liver": [1]}}  # fmt: skip
    config = {"pretrained": "/secret/other.pth", "held_out_cases": ["Dataset500_Source/mrs_miller"], "probe": probe}
    (checkpoint.parent / "config.json").write_text(json.dumps(config))
    for format in FORMATS[:2]:
        folder = export(checkpoint, tmp_path / format, format, licence="mit")
        for file in folder.iterdir():
            assert b"mrs_miller" not in file.read_bytes() and b"secret" not in file.read_bytes(), file
        assert "| volumes | 2 |" in (folder / "README.md").read_text()


def test_export__all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, out = _run(tmp_path), tmp_path / "out"
    folder = export(checkpoint, out, licence="mit")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="not empty; give -o another folder, or --overwrite"):
        export(checkpoint, out)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("nnssl.interchange.exporting.model_card", full)
        with pytest.raises(OSError, match="No space"):
            export(checkpoint, out, "safetensors", overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(WRITING)] == []
    export(checkpoint, out, "safetensors", overwrite=True)
    assert (out / "model.safetensors").is_file() and not (out / "checkpoint_final.pth").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(UserError, match="replaces nothing but what nnssl_export wrote"):
        export(checkpoint, mine, overwrite=True)
    with pytest.raises(UserError, match="which it would replace"):
        export(out, out, "nnunet", overwrite=True)
    (out / ".git").mkdir()
    with pytest.raises(UserError, match=r"out holds \.git too"):
        export(checkpoint, out, overwrite=True)
    (tmp_path / "link").symlink_to(mine)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "link", Path("."), Path("..")):
        with pytest.raises(UserError, match="is a link, or the folder that you are in"):
            export(checkpoint, place, overwrite=True)
    with pytest.raises(UserError, match="random weights"):
        export(f"random:{checkpoint}", tmp_path / "random")


def test_export__damaged_or_incomplete_folders(tmp_path: Path) -> None:
    folder = export(_run(tmp_path), tmp_path / "out", "safetensors", licence="mit")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_pretrained(folder)
    weights.write_bytes(whole)
    os.remove(folder / "config.json")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_pretrained(folder)


def test_methods__say_what_they_learn_from_and_whom_to_cite() -> None:
    from nnssl.methods.registry import method_names

    for name in method_names():
        method = get_method(name)
        assert method.learns_from and method.paper.endswith("."), name


def test_export__of_what_was_trained_from_others_weights(tmp_path: Path) -> None:
    from dataclasses import replace

    from nnssl.pretraining.folder import Stored
    from nnssl.pretraining.loop import Pretraining
    from tests.runs import CPU, make_setup, resumed

    setup = make_setup(tmp_path, num_epochs=2, steps_per_epoch=1, val_steps_per_epoch=0)
    begun = Pretraining(setup, CPU)
    about = {"title": "Theirs", "licence": "CC BY-NC-ND 4.0", "citation": "They (2020).", "axes": "zyx"}
    start = Stored(tmp_path / "start.pth", {**begun._content(), "imported": about})
    run = Pretraining(replace(setup, pretrained=start), CPU)
    kept = {"title": "Theirs", "licence": "CC BY-NC-ND 4.0", "citation": "They (2020).", "derived": True}
    assert run._content()["origin"] == kept
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth"):
        save_checkpoint(run._content(), setup.folder / name)
    with pytest.raises(UserError, match=r"trained from Theirs, whose licence cc-by-nc-nd-4\.0"):
        export(setup.folder, tmp_path / "out", "safetensors", licence="cc-by-nc-nd-4.0")
    assert resumed(setup, "checkpoint_latest.pth").origin["origin"] == kept  # --c goes on with it


def test_export__primus_has_a_name_in_each_published_size() -> None:
    from nnssl.interchange.adaptation_plan import adaptation_plan

    pytest.importorskip("nnssl.networks.primus")
    kwargs = {"input_shape": [16, 16, 24], "patch_embed_size": [8, 8, 8], "embed_dim": 864, "eva_depth": 16,
              "eva_numheads": 12, "strides": [[1, 1, 1], *[[2, 2, 2]] * 3]}  # fmt: skip
    primus = {"network_class_name": "nnssl.networks.primus.Primus", "arch_kwargs": kwargs, "_kw_requires_import": []}
    plan = adaptation_plan({"plans": tiny_plans(architecture=primus), "configuration": "3d_fullres"})
    assert plan["architecture_plans"] == {
        "arch_class_name": "PrimusM", "arch_kwargs": None, "arch_kwargs_requiring_import": None}  # fmt: skip
    assert (plan["key_to_encoder"], plan["key_to_lpe"]) == ("eva", "eva.pos_embed")
    assert plan["pretrain_patch_size"] == [16, 16, 24]
    kwargs["embed_dim"] = 396
    with pytest.raises(UserError, match="a Primus of a size of its own"):
        adaptation_plan({"plans": tiny_plans(architecture=primus), "configuration": "3d_fullres"})

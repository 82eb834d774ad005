"""Alice's and MAE's downstream set-ups: checkpoint, fine-tuning, nnU-Net's own prediction, for every encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.networks.vit import POSITIONS, resized_positions
from tests.finetuning.flare import SOURCE, log_of, make_trainer, read_plans, source_plans, state_of
from tests.networks.helpers import count_parameters
from tests.pretrainings import write_pretraining

TRAINERS = {"alice": "AliceFinetune", "mae": "MAEFinetune"}
HALVED = [2, 2, 2]
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (
        "nnssl.networks.vit.UNETR",
        {"strides": [[1, 1, 1]] + [HALVED] * 4, "image_size": [32, 32, 32], "feature_size": 4, "hidden_size": 24,
         "mlp_dim": 32, "num_heads": 3, "num_layers": 4},
    ),
    "primus": (
        "nnssl.networks.primus.Primus",
        {"strides": [[1, 1, 1]] + [HALVED] * 3, "input_shape": [16, 16, 32], "embed_dim": 24, "eva_depth": 2,
         "eva_numheads": 2},
    ),
    "swin": (
        "nnssl.networks.swin.SwinUNETR",
        {"strides": [[1, 1, 1]] + [HALVED] * 5, "feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 2},
    ),
    "nnformer": (
        "nnssl.networks.nnformer.NNFormer",
        {"strides": [[1, 1, 1]] + [HALVED] * 3, "widths": [8, 16, 32, 64], "num_heads": [2, 2, 4, 4]},
    ),
}  # fmt: skip
PATCHES = {
    "unet": (16, 24, 24),
    "vit": (32, 32, 32),
    "primus": (16, 16, 32),
    "swin": (32, 64, 64),
    "nnformer": (16, 32, 32),
}


def _plans(root: Path, kind: str, **arguments: Any) -> dict[str, Any]:
    """Plans of the target with a network of a kind; arguments change its architecture."""
    plans = source_plans(root) if kind == "unet" else read_plans(root)
    made = plans["configurations"]["3d_fullres"]
    made["patch_size"] = list(PATCHES[kind])
    if kind != "unet":
        name, given = ARCHITECTURES[kind]
        made["architecture"] = {
            "network_class_name": name, "arch_kwargs": given | arguments, "_kw_requires_import": []
        }  # fmt: skip
    return plans | {"dataset_name": read_plans(root)["dataset_name"]}


def _pretrain(root: Path, plans: dict[str, Any], method: str = "alice") -> dict[str, torch.Tensor]:
    """Write the only pretraining that there is; returns its state."""
    shutil.rmtree(root / "results", ignore_errors=True)
    (root / "results").mkdir()
    checkpoint = write_pretraining(root / "results", plans | {"dataset_name": SOURCE}, method=method)
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["method_state"]
    return state


@pytest.mark.parametrize(("method", "kind"), [
    ("alice", "unet"), ("alice", "vit"), ("alice", "nnformer"), ("mae", "primus"),
    pytest.param("alice", "swin", marks=pytest.mark.slow), pytest.param("mae", "vit", marks=pytest.mark.slow),
])  # fmt: skip
def test_finetune__from_the_encoder_to_stock_prediction(flare: Path, method: str, kind: str) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans = _plans(flare, kind)
    state = _pretrain(flare, plans, method)
    trainer = make_trainer(flare, "AliceNNFormerFinetune" if kind == "nnformer" else TRAINERS[method], plans=plans)
    trainer.initialize()
    module, report = trainer.network_module, _report(trainer)
    assert module.pretrained_tensors().keys() == report["loaded"].keys() and not report["adapted"]
    for name, tensor in module.pretrained_tensors().items():
        assert torch.equal(tensor, state[f"backbone.{name}"])
    fresh = ("decoder", "cross_attn", "up_projection", "mask_token")
    assert all(any(part in n for part in fresh) or (kind == "vit" and ".encoder" in n) for n in report["fresh"])
    assert any(name.startswith(("decoder.", "tokens.", "target.")) for name in report["unused"])
    before = state_of(module)
    trainer.run_training()
    after = state_of(trainer.network_module)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any("seg_layers" in name or "up_projection.decode.2" in name for name in moved) and moved & {
        f"network.{n}" for n in _names(kind)
    }

    shutil.rmtree(flare / "results" / SOURCE)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(1, 1, *PATCHES[kind])
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(image), trainer.network.eval()(image))
    logits = predictor.predict_sliding_window_return_logits(torch.randn(1, 14, 30, 26))
    assert logits.shape == (3, 14, 30, 26)


def _report(trainer: Any) -> dict[str, dict[str, int]]:
    file = Path(trainer.output_folder) / "nnssl_transfer.json"
    report: dict[str, dict[str, int]] = json.loads(file.read_text())["report"]
    return report


def _names(kind: str) -> list[str]:
    """Some pretrained tensor of every encoder that a step has to change."""
    return {
        "unet": ["encoder.stages.0.0.convs.0.conv.weight"],
        "vit": ["backbone.vit.patch_embedding.patch_embeddings.weight", f"backbone.{POSITIONS}"],
        "primus": ["down_projection.proj.weight", "eva.pos_embed", "eva.blocks.1.attn.q_proj.weight"],
        "swin": ["backbone.swinViT.patch_embed.proj.weight"],
        "nnformer": ["backbone.embedding.convolutions.0.weight"],
    }[kind]


def test_positions__are_interpolated_to_the_targets_patch_and_reported(flare: Path) -> None:
    state = _pretrain(flare, _plans(flare, "vit"))
    plans = _plans(flare, "vit", image_size=[16, 32, 48])
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 32, 48]
    trainer = make_trainer(flare, "AliceFinetune", plans=plans)
    trainer.initialize()
    expected = resized_positions(state[f"backbone.{POSITIONS}"], (2, 2, 2), (1, 2, 3))
    assert torch.equal(trainer.network_module.pretrained_tensors()[POSITIONS], expected)
    assert _report(trainer)["adapted"] == {POSITIONS: expected.numel()}
    assert f"adapted:     1 tensors, {expected.numel():12,} values ({POSITIONS})" in log_of(trainer)
    # a probe has the pretraining's own network, which interpolates them for every image
    probe = make_trainer(flare, "SSLProbe", plans=plans)
    probe.initialize()
    assert torch.equal(probe.network_module.pretrained_tensors()[POSITIONS], state[f"backbone.{POSITIONS}"])
    own, shaped = probe.network_module.backbone, trainer.network_module.network.backbone
    image = torch.rand(1, 1, 16, 32, 48)
    with torch.no_grad():
        assert torch.allclose(own(image)[-1], shaped.eval()(image)[-1], atol=1e-6)


def test_positions__of_another_width_are_another_network(flare: Path) -> None:
    _pretrain(flare, _plans(flare, "vit"))
    with pytest.raises(UserError, match=r"another network.*\(1, 8, 24\) in the checkpoint, \(1, 8, 48\)"):
        make_trainer(flare, "AliceFinetune", plans=_plans(flare, "vit", hidden_size=48)).initialize()


def test_finetune__refuses_a_patch_of_parts_of_tokens(flare: Path) -> None:
    plans = _plans(flare, "vit")
    _pretrain(flare, plans)
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 32]
    with pytest.raises(UserError, match=r"16,24,32 .*16,16,32 or 16,32,32"):
        make_trainer(flare, "AliceFinetune", plans=plans).initialize()


@pytest.mark.parametrize(("pretrained", "wanted"), [("mae", "alice"), ("alice", "mae")])
def test_finetune__names_the_trainer_of_another_method(
    flare: Path, pretrained: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretrain(flare, _plans(flare, "unet"), pretrained)
    (checkpoint,) = (flare / "results").glob("*/*/*/checkpoint_final.pth")
    monkeypatch.setenv("nnssl_checkpoint", str(checkpoint))
    with pytest.raises(
        UserError, match=rf"with {pretrained}.*-tr nnUNetTrainer_{TRAINERS[pretrained]}, or pretrain {wanted}"
    ):
        make_trainer(flare, TRAINERS[wanted], plans=_plans(flare, "unet")).initialize()


def test_finetune__is_trained_as_unetr_and_swinunetr_are(flare: Path) -> None:
    plans = _plans(flare, "unet")
    _pretrain(flare, plans)
    trainer = make_trainer(flare, "AliceFinetune", plans=plans)
    trainer.num_epochs = 500
    trainer.initialize()
    assert type(trainer).epochs == 500 and isinstance(trainer.optimizer, torch.optim.AdamW)
    rates = []
    for epoch in (0, 4, 252, 499):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:2] == pytest.approx([2e-5, 1e-4]) and rates[2] == pytest.approx(5e-5, rel=0.01) and rates[3] < 1e-8
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-5


def test_nnformer__is_trained_as_its_authors_train(flare: Path) -> None:
    plans = _plans(flare, "nnformer")
    _pretrain(flare, plans)
    plans["configurations"]["3d_fullres"]["patch_size"] = [14, 26, 33]  # divisible by nothing
    trainer = make_trainer(flare, "AliceNNFormerFinetune", plans=plans)
    trainer.num_epochs = 1000
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    given = [group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")]
    assert isinstance(trainer.optimizer, torch.optim.SGD) and given == [1e-2, 0.99, 3e-5, True]
    trainer.lr_scheduler.step(500)
    assert group["lr"] == pytest.approx(1e-2 * 0.5**0.9) and type(trainer).epochs == 1000
    trainer.set_deep_supervision_enabled(True)
    outputs = trainer.network(torch.randn(1, 1, 14, 26, 33))
    scales = trainer._get_deep_supervision_scales()
    expected = [tuple(round(n * s) for n, s in zip((14, 26, 33), scale, strict=True)) for scale in scales]
    assert [tuple(y.shape[2:]) for y in outputs] == expected and len(expected) == 3
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(torch.randn(1, 1, 14, 26, 33)).shape == (1, 3, 14, 26, 33)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_downstream__has_the_parameters_of_monai(flare: Path, kind: str) -> None:
    """As large as MONAI's own, whatever was pretrained."""
    from monai.networks.nets.swin_unetr import SwinUNETR
    from monai.networks.nets.unetr import UNETR

    layers = {"num_layers": 12} if kind == "vit" else {}  # MONAI's UNETR has no choice
    plans = _plans(flare, kind, **layers)
    _pretrain(flare, plans)
    trainer = make_trainer(flare, "AliceFinetune", plans=plans)
    trainer.initialize()
    given = {k: v for k, v in ARCHITECTURES[kind][1].items() if k not in ("strides", "image_size", "num_layers")}
    official = (
        UNETR(in_channels=1, out_channels=3, img_size=PATCHES["vit"], **given)
        if kind == "vit"
        else SwinUNETR(in_channels=1, out_channels=3, use_v2=True, **given)
    )
    assert count_parameters(trainer.network_module) == count_parameters(official)

"""Parts of the network that stay as they are: which, for how long, after --c, in several processes."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from nnssl.core.errors import UserError
from nnssl.finetuning.freezing import Freezing, asked_freezing
from tests.finetuning.flare import batch_of, log_of, make_trainer, read_plans, same, state_of
from tests.finetuning.test_every_trainer import NAMES
from tests.finetuning.test_unet_recipes import _OnCpu

CASES = ["case_000", "case_001"]


@pytest.fixture(autouse=True)
def random_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "random")


def _set(monkeypatch: pytest.MonkeyPatch, parts: str, steps: int | None = None) -> None:
    monkeypatch.setenv("nnssl_freeze", parts)
    if steps is not None:
        monkeypatch.setenv("nnssl_freeze_steps", str(steps))


def _begun(flare: Path, name: str, continued: bool = False, **options: Any) -> Any:
    trainer = make_trainer(flare, name, continued, **options)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return trainer


def _step(trainer: Any) -> set[str]:
    """Names of the tensors that a training step changes."""
    before = state_of(trainer.plain_network)
    trainer.train_step(batch_of(trainer, CASES))
    after = state_of(trainer.plain_network)
    return {name for name in after if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", ["SSLUNetFinetune", "SSLUNetScratch", "PartialLabels"])
def test_freeze__the_encoder_for_two_steps_with_any_trainer(
    flare: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _set(monkeypatch, "encoder", 2)
    monkeypatch.setenv("nnssl_num_iterations_per_epoch", "5")
    trainer = _begun(flare, name)
    encoder = trainer.plain_network.get_submodule("encoder" if name == "PartialLabels" else "network.encoder")
    frozen = sum(p.numel() for p in encoder.parameters())
    whole = sum(p.numel() for p in trainer.plain_network.parameters())
    said = (
        f"Frozen: encoder, {frozen:,} values, for the first 2 of 10 steps; {whole - frozen:,} values train until then"
    )
    assert f"{said}, {whole:,} after that" in log_of(trainer)
    trainer.on_train_epoch_start()
    moved = [_step(trainer) for _ in range(3)]
    for names, encodes in zip(moved, (False, False, True), strict=True):
        assert any(".encoder." in f".{n}" and "decoder" not in n for n in names) is encodes
        assert any("seg_layers" in n for n in names)
    assert f"Step 2: nothing is frozen any more; {whole:,} values train, {whole - frozen:,} before" in log_of(trainer)
    assert trainer.plans_manager.plans["nnssl"]["freeze"] == ["encoder"]


def test_freeze__decoder_and_stages_by_the_plans(flare: Path) -> None:
    plans = read_plans(flare)
    trainer = _begun(flare, "SSLUNetFinetune", plans=plans | {"nnssl": {"freeze": ["decoder"]}})
    assert all("encoder" in name for name in _step(trainer)) and "for the whole training; " in log_of(trainer)
    trainer = _begun(flare, "SSLUNetFinetune", plans=plans | {"nnssl": {"freeze": ["stages:2"], "freeze_steps": 9}})
    moved = {name for name in _step(trainer) if name.startswith("network.encoder.")}
    assert moved and all(name.startswith("network.encoder.stages.2") for name in moved)
    with pytest.raises(UserError, match="stages:9 asks for more stages than the 3 of the encoder"):
        _begun(flare, "SSLUNetFinetune", plans=plans | {"nnssl": {"freeze": ["stages:9"]}})


def test_freeze__goes_on_as_if_never_interrupted(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, "encoder", 3)  # steps 0 to 2: the second epoch begins frozen
    trainer = _begun(flare, "SSLUNetFinetune")
    trainer.on_train_epoch_start()
    _step(trainer)
    _step(trainer)
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    monkeypatch.delenv("nnssl_freeze")
    monkeypatch.delenv("nnssl_freeze_steps")
    again = make_trainer(flare, "SSLUNetFinetune", continued=True)
    again.load_checkpoint(file)
    assert (again.current_epoch, again.freezing) == (1, Freezing(("encoder",), 3))
    trainer.current_epoch = 1
    for one in (trainer, again):
        one.on_train_epoch_start()
        moved = [any("encoder" in name for name in _step(one)) for _ in range(2)]
        assert moved == [False, True]
    assert same(state_of(trainer.plain_network), state_of(again.plain_network))
    assert again.plain_network.network.encoder.stages[0][0].convs[0].conv.weight.requires_grad
    again.save_checkpoint(file)
    later = make_trainer(flare, "SSLUNetFinetune", continued=True)
    later.load_checkpoint(file)  # at step 4: nothing is frozen any more
    assert all(p.requires_grad for p in later.plain_network.network.encoder.parameters())


def test_freeze__a_continued_training_refuses_another(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _begun(flare, "PartialLabels")
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    _set(monkeypatch, "encoder")
    with pytest.raises(UserError, match=r"began with nothing frozen, not encoder for the whole training; unset"):
        make_trainer(flare, "PartialLabels", continued=True).load_checkpoint(file)
    trainer = _begun(flare, "PartialLabels")
    trainer.save_checkpoint(file)
    _set(monkeypatch, "decoder", 7)
    with pytest.raises(UserError, match="export nnssl_freeze=encoder nnssl_freeze_steps=0"):
        make_trainer(flare, "PartialLabels", continued=True).load_checkpoint(file)


def test_freeze__keeps_the_statistics_of_batch_norm(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = read_plans(flare)
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "nnssl.networks.fpn_unet.FPN3dUNet",
        "arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "base_channels": 4, "num_scales": 3},
        "_kw_requires_import": [],
    }
    _set(monkeypatch, "stages:2", 4)
    trainer = _begun(flare, "SSLUNetFinetune", plans=plans)
    trainer.on_train_epoch_start()
    moved = _step(trainer)
    left = {name.split(".")[3] for name in moved if ".left_blocks." in name}
    assert any(".bottom_block." in name and "running_mean" in name for name in moved) and not left
    assert not any("first_conv" in name for name in moved)
    trainer.current_epoch = 2
    trainer.on_train_epoch_start()
    assert any(".left_blocks." in name and "running_mean" in name for name in _step(trainer))


@pytest.mark.parametrize(
    "kind", ["swin", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("vit", "nnformer"))]
)
def test_freeze__stages_of_transformers(flare: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from tests.finetuning.test_masked_trainer import _plans

    _set(monkeypatch, "stages:1", 4)
    trainer = _begun(flare, "SSLUNetFinetune", plans=_plans(flare, kind))
    frozen = {name for name, p in trainer.plain_network.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("network.backbone.") for name in frozen)
    _set(monkeypatch, "encoder", 4)
    more = _begun(flare, "SSLUNetFinetune", plans=_plans(flare, kind))
    whole = {name for name, p in more.plain_network.named_parameters() if not p.requires_grad}
    assert frozen < whole or (kind == "vit" and frozen == whole)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_freeze__in_several_processes(flare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str) -> None:
    _set(monkeypatch, part, 1)
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP", _OnCpu)
    monkeypatch.setattr("nnssl.finetuning.freezing.DistributedDataParallel", _OnCpu)
    trainer = make_trainer(flare, "SSLUNetFinetune")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        trainer.is_ddp = True  # nnU-Net would take a card
        trainer.initialize()
        wrapped = trainer.network
        moved = [
            any(f".{part}." in name and "decoder.encoder" not in name for name in _step(trainer)) for _ in range(3)
        ]
        assert moved == [False, True, True]
        assert isinstance(trainer.network, DistributedDataParallel) and trainer.network is not wrapped
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("freeze", [5, True, ["encoder", 3], {"encoder": 1}])
def test_freeze__of_the_plans_is_a_list_of_names(flare: Path, freeze: Any) -> None:
    with pytest.raises(UserError, match="freeze: must be a list of parts") as found:
        make_trainer(flare, "PartialLabels", plans=read_plans(flare) | {"nnssl": {"freeze": freeze}})
    assert str(found.value).count("freeze") == 1


@pytest.mark.parametrize(("freeze", "steps", "said"), [
    ("encodr", None, "takes encoder, decoder, stages:N.*not 'encodr'; write .freeze.: ..encoder.. into"),
    ("stages:0", None, "not 'stages:0'"),
    ("encoder", "-1", "nnssl_freeze_steps takes a whole number.*not '-1'"),
    (None, "10", "write .freeze.: ..encoder.. into"),
    ([], None, "takes encoder"),
])  # fmt: skip
def test_asked_freezing__refuses_what_is_wrong(freeze: Any, steps: str | None, said: str) -> None:
    block = {"freeze": freeze} if freeze is not None else {}
    with pytest.raises(UserError, match=said):
        asked_freezing(block | ({"freeze_steps": steps} if steps else {}), {})


def test_asked_freezing__of_variables_and_plans() -> None:
    both = {"nnssl_freeze": "encoder,stages:3", "nnssl_freeze_steps": "7"}
    assert asked_freezing({}, both) == Freezing(("encoder", "stages:3"), 7)
    assert asked_freezing({"freeze": ["decoder", "stages:1"]}, {}) == Freezing(("decoder", "stages:1"), 0)
    assert asked_freezing({}, {}) is None


def test_freeze__every_trainer_takes_it_or_says_why_not(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = {name for name in NAMES if re.fullmatch(r"(SSL|Vox2vec)(Linear)?(Probe|Finetune)(Published)?", name)}
    refusing |= {"LAPN", "SSLEncodings"}
    assert len(refusing) == 11 and len(NAMES) > 20
    plans = read_plans(flare) | {"nnssl": {"freeze": ["encoder"], "freeze_steps": 1000}}
    for name in NAMES:
        for variables in (False, True)[: 1 + (name in refusing)]:
            with monkeypatch.context() as patched:
                if variables:
                    _set(patched, "encoder", 1000)
                given = None if variables else deepcopy(plans)
                if name not in refusing:
                    assert make_trainer(flare, name, plans=given).freezing == Freezing(("encoder",), 1000), name
                    continue
                with pytest.raises(UserError, match="freezes the pretrained part as its recipe has it") as found:
                    make_trainer(flare, name, plans=given)
                assert ("unset nnssl_freeze," in str(found.value)) is variables, name
                assert ('take "freeze" out of "nnssl" in the plans,' in str(found.value)) is not variables, name


@pytest.mark.parametrize(("name", "head"), [("SSLUNetFinetune", "seg_layers"), ("SSLScratch", "head")])
def test_freeze__all_but_the_head(flare: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: str) -> None:
    _set(monkeypatch, "body", 1)
    trainer = _begun(flare, name)
    trained = {n for n, p in trainer.plain_network.named_parameters() if p.requires_grad}
    assert trained and all(head in n.split(".") for n in trained)
    record = trainer.frozen_record()["frozen"]
    assert record["parts"] == ["body"] and record["tensors"] > 10
    assert record["trained_values"] == sum(p.numel() for p in trainer.plain_network.parameters() if p.requires_grad)
    moved = [_step(trainer) for _ in range(2)]
    assert moved[0] and all(head in n.split(".") for n in moved[0])
    assert any("encoder" in n for n in moved[1])


def test_freeze__of_the_plans_is_mended_in_the_plans(flare: Path) -> None:
    plans = read_plans(flare) | {"nnssl": {"freeze": ["decoder"], "freeze_steps": 7}}
    trainer = _begun(flare, "PartialLabels")
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    with pytest.raises(UserError, match=r'take "freeze" and "freeze_steps" out of "nnssl" in the plans$'):
        make_trainer(flare, "PartialLabels", continued=True, plans=deepcopy(plans)).load_checkpoint(file)
    trainer = _begun(flare, "PartialLabels", plans=plans | {"nnssl": {"freeze": ["encoder"]}})
    trainer.save_checkpoint(file)
    with pytest.raises(UserError, match=r'write "freeze": \["encoder"\], "freeze_steps": 0 into "nnssl" in the plans$'):
        make_trainer(flare, "PartialLabels", continued=True, plans=deepcopy(plans)).load_checkpoint(file)


def test_freeze__of_everything_is_refused(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, "encoder,decoder")
    with pytest.raises(UserError, match="leaves nothing to train"):
        _begun(flare, "SSLUNetFinetune")


def test_freeze__a_head_of_ours_for_a_while(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, "encoder", 1)
    trainer = _begun(flare, "SSLScratch")
    assert trainer.plain_network.frozen
    moved = [any(name.startswith("backbone.") for name in _step(trainer)) for _ in range(2)]
    assert moved == [False, True] and not trainer.plain_network.frozen
    assert json.loads(json.dumps(trainer.plans_manager.plans["nnssl"]["freeze_steps"])) == 1

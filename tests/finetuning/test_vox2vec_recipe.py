"""vox2vec's published downstream recipe inside nnU-Net's classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.core.errors import UserError
from nnssl.finetuning.vox2vec_recipe import BodyLoss
from nnssl.methods.vox2vec.method import vox2vec_segmentation_loss
from tests.finetuning.flare import CPU, finish, log_of, make_trainer, same, state_of
from tests.networks.helpers import load_reference

KINDS = ("LinearProbe", "Probe", "Finetune", "Scratch")


@pytest.fixture(autouse=True)
def random_start(flare: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("nnssl_checkpoint", "random")
    yield


def _made(flare: Path, kind: str = "Probe", **options: Any) -> Any:
    return make_trainer(flare, f"Vox2vec{kind}Published", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_step__trains_what_todays_trainer_of_the_name_trains(flare: Path, kind: str) -> None:
    trainer = _made(flare, kind)
    trainer.on_train_start()
    module = trainer.network_module
    backbone, head = state_of(module.backbone), state_of(module.head)
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape[0] == 7 and len(set(batch["keys"])) == 1
    assert np.isfinite(trainer.train_step(batch)["loss"])
    trainer.on_validation_epoch_start()
    assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    assert same(state_of(module.backbone), backbone) == (kind != "Scratch")
    assert not same(state_of(module.head), head)
    today = make_trainer(flare, f"Vox2vec{kind}")
    names = ("head", "rate", "decay", "epochs", "steps", "mirrors", "from_scratch")
    assert all(getattr(trainer, name) == getattr(today, name) for name in names)


def test_backgrounds_logit__is_zero_and_argmax_is_the_threshold(flare: Path) -> None:
    trainer = _made(flare)
    trainer.initialize()
    image = torch.randn(1, 1, 12, 24, 24)
    with torch.no_grad():  # so that some voxels are of no class
        largest = trainer.network.eval()(image)[:, 1:].amax(1)
        trainer.network_module.head.final_block.bias -= largest.median()
    model = finish(trainer)
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    with torch.no_grad():
        logits = predictor.network.eval()(image)
        assert torch.equal(logits, trainer.network.eval()(image))
    assert logits.shape[1] == trainer.label_manager.num_segmentation_heads and not logits[:, 0].any()
    chosen, classes = logits.argmax(1), logits[:, 1:].double()  # float32 rounds the sigmoid of 1e-9 to one half
    expected = torch.where(classes.sigmoid().amax(1) > 0.5, classes.argmax(1) + 1, 0)
    assert torch.equal(chosen, expected) and 0 < (chosen > 0).float().mean() < 1


def test_loss__is_the_published_one() -> None:
    case = load_reference("vox2vec.json")["segmentation_loss"]
    logits, target = (torch.tensor(case[name], dtype=torch.float64) for name in ("logits", "target"))
    loss = BodyLoss(regions=True, ignore_label=None)
    loss.body = torch.tensor(case["roi"])[:, None]
    assert loss(logits, target).item() == pytest.approx(case["loss_with_roi"], abs=1e-9)


def test_loss__of_labels_leaves_out_the_background_and_what_is_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 2, 3, 4), generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 1, 2, 3, 4), generator=generator)  # 3 is ignored
    body = torch.rand((2, 1, 2, 3, 4), generator=generator) > 0.3
    loss = BodyLoss(regions=False, ignore_label=3)
    loss.body = body
    found = loss(logits, labels)
    truth = torch.cat([labels == 1, labels == 2], dim=1)
    torch.testing.assert_close(found, vox2vec_segmentation_loss(logits[:, 1:], truth, (body & (labels != 3))[:, 0]))
    found.backward()
    assert logits.grad is not None and not logits.grad[:, 0].any()


def test_patches__half_hold_a_voxel_of_a_random_class(flare: Path) -> None:
    trainer = _made(flare)
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader
    np.random.seed(0)
    size, rare = np.array([40, 50, 60]), np.array([[0, 3, 45, 59]])
    locations = {1: rare, 2: np.array([[0, 20, 5, 7], [0, 21, 5, 7]]), 3: np.empty((0, 4))}
    patch = np.asarray(loader.patch_size)
    starts = np.array([loader.start_of_patch(size, locations, True) for _ in range(400)])
    holds = [
        ((starts <= row[1:]) & (row[1:] < starts + patch)).all(1) for row in (rare[0], locations[2][0], locations[2][1])
    ]
    assert (holds[0] | holds[1] | holds[2]).all() and holds[0].mean() == pytest.approx(0.5, abs=0.08)
    assert (starts >= 0).all() and (starts + patch <= size).all() and len(np.unique(starts, axis=0)) > 100
    anywhere = np.array([loader.start_of_patch(size, locations, False) for _ in range(400)])
    assert anywhere.min(0).tolist() == [0, 0, 0] and (anywhere.max(0) == size - patch).all()
    small = np.array([loader.start_of_patch(np.array([4, 50, 60]), {}, True) for _ in range(50)])
    assert small[:, 0].max() <= 0 and (small[:, 0] + patch[0]).min() >= 4
    asked = [loader.get_do_oversample(0) for _ in range(2000)]
    assert np.mean(asked) == pytest.approx(0.5, abs=0.05)


def test_patches__are_image_labels_and_body_of_one_place(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _made(flare)
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader
    volume = loader.folder.open(loader.indices[0])
    whole = (np.zeros(3, dtype=int), volume.size)
    image, labels, body = volume.read(*whole)[0], volume.read_labels(*whole), volume.read_body(*whole)
    loader.indices, starts = loader.indices[:1], []
    draw = loader.start_of_patch

    def noted(*arguments: Any) -> Any:
        starts.append(draw(*arguments))
        return starts[-1]

    monkeypatch.setattr(loader, "start_of_patch", noted)
    batch = loader.generate_train_batch()
    margin = [(int(n), int(n)) for n in loader.patch_size]
    padded = [np.pad(v, margin) for v in (image, np.maximum(labels, 0), body)]
    for data, target, start in zip(batch["data"].numpy(), batch["target"].numpy(), starts, strict=True):
        at = tuple(slice(int(s + n), int(s + 2 * n)) for s, n in zip(start, loader.patch_size, strict=True))
        expected = [v[at] for v in padded]
        assert all(np.array_equal(a, b) for a, b in zip(expected, (data[0], *target), strict=True))


@pytest.mark.parametrize("regions", [False, True])
def test_validation__shows_the_dice_with_and_without_averaging(
    flare: Path, monkeypatch: pytest.MonkeyPatch, regions: bool
) -> None:
    content: dict[str, Any] = {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 2]}
    trainer = _made(flare, **(content if regions else {}))
    trainer.on_train_start()
    trainer.train_step(next(trainer.dataloader_train))
    folder = Path(trainer.output_folder) / "validation"
    folder.mkdir()
    (folder / "summary.json").write_text(
        '{"foreground_mean": {"Dice": 0.25}, "mean": {}, "metric_per_case": []}'
    )  # nnU-Net's, of the stock validation
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: None)
    trainer.network.eval()
    trainer.perform_actual_validation()
    line = next(line for line in log_of(trainer).splitlines() if "without averaging windows" in line)
    assert "averages them: 0.2500" in line
    _, cases = trainer.do_split()
    written = Path(trainer.output_folder) / "validation_without_averaging"
    assert {f.name for f in written.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in cases}
    assert trainer.network_module.fixed_background != regions


def test_body_masks__are_asked_for(flare: Path) -> None:
    trainer = _made(flare)
    shutil.rmtree(f"{trainer.preprocessed_dataset_folder}_body")
    with pytest.raises(UserError, match=r"has no body mask; type: nnssl_plan_and_preprocess -d Dataset017"):
        trainer.on_train_start()


def test_body_masks__of_the_validation_after_it_are_asked_for_before_a_step(
    flare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _made(flare)
    training, validation = trainer.do_split()
    splits = Path(trainer.preprocessed_dataset_folder_base) / "splits_final.json"
    online = {"train": training[:-1], "val": validation, "online_val": training[-1:]}
    splits.write_text(json.dumps([online]))
    (Path(f"{trainer.preprocessed_dataset_folder}_body") / f"{validation[0]}.b2nd").unlink()
    with pytest.raises(UserError, match=rf"{validation[0]} has no body mask"):
        trainer.on_train_start()
    with pytest.raises(UserError, match=rf"{validation[0]} has no body mask"):  # as --val begins
        trainer.perform_actual_validation()

"""PiMPiC's published fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.finetuning.pimpic_recipe import JointAffine, SoftmaxDice, WindowNoise
from nnssl.methods.pimpic.loss import softmax_dice_loss
from tests.finetuning.flare import batch_of, log_of, make_trainer, same, state_of
from tests.networks.helpers import load_reference


@pytest.fixture(autouse=True)
def random_start(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "random")


def test_loss__is_the_published_one(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    trainer.initialize()
    case = load_reference("pimpic.json")["segmentation_dice"]
    logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
    assert trainer.loss(logits, labels).item() == pytest.approx(case["value"], abs=1e-6)
    assert (trainer.patience, trainer.oversample_foreground_percent, trainer.enable_deep_supervision) == (
        15,
        0.5,
        False,
    )
    (group,) = trainer.optimizer.param_groups
    assert (type(trainer.optimizer), group["lr"], group["weight_decay"]) == (torch.optim.Adam, 1e-5, 0)


def test_loss__ignored_voxels_count_for_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 2, 3, 4), generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 2, 3, 4), generator=generator)
    ignored = labels.clone()
    ignored[..., 2:] = 3
    loss = SoftmaxDice(3)(logits, ignored)
    torch.testing.assert_close(loss, softmax_dice_loss(logits[..., :2], labels[..., :2]))
    loss.backward()
    assert logits.grad is not None and not logits.grad[..., 2:].any() and logits.grad[..., :2].all()


def test_step__trains_everything_and_mirrors_nothing(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    trainer.on_train_start()
    before = state_of(trainer.network)
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    trainer.on_validation_epoch_start()
    assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    assert not same(before, state_of(trainer.network)) and trainer.inference_allowed_mirroring_axes is None
    names = [type(t).__name__ for t in trainer.dataloader_train.data_loader.transforms.transforms]
    assert names[:2] == ["RandomTransform", "JointAffine"] and "MirrorTransform" not in names
    shape = trainer.dataloader_train.data_loader.patch_size
    assert all(larger > final for larger, final in zip(shape, trainer.configuration_manager.patch_size, strict=True))


def test_noise__deviation_is_uniform_in_the_window(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    std = trainer.plans_manager.foreground_intensity_properties_per_channel["0"]["std"]
    (width,) = trainer._windows()
    assert width == pytest.approx(600 / std)
    np.random.seed(0)
    torch.manual_seed(0)
    image = torch.stack([torch.zeros(4, 4, 4), torch.linspace(0, 50, 64).view(4, 4, 4)])
    drawn = np.array([WindowNoise([width, None]).get_parameters(image=image)["sigmas"] for _ in range(2000)])
    for sigma, of in zip(drawn.T, (width, 50), strict=True):
        assert (sigma.mean() / of, sigma.std() / of) == pytest.approx((0.005, 0.01 / 12**0.5), rel=0.05)
        assert sigma.min() >= 0 and sigma.max() <= 0.01 * of
    noise = WindowNoise([1.0, 1.0])
    noise.noise_variance = 0.01
    changed = noise(image=torch.zeros(2, 24, 24, 24))["image"]
    assert changed.std().item() == pytest.approx(0.01, rel=0.02)


def test_affine__both_or_neither() -> None:
    np.random.seed(0)
    affine, image = JointAffine((6, 8, 10)), torch.rand(1, 10, 12, 14)
    matrices = [affine.get_parameters(image=image)["affine"] for _ in range(1500)]
    done: Any = np.array([m for m in matrices if m is not None])
    assert len(done) / 1500 == pytest.approx(0.1, abs=0.025)
    scales = np.linalg.norm(done, axis=1)
    assert scales.min() >= 0.9 and scales.max() <= 1.1 and (np.abs(scales - 1) > 1e-3).mean() > 0.9
    angles = np.arccos(np.clip((np.trace(done / scales[:, None], axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert angles.mean() > 0.01 and angles.max() < 0.1 * 3**0.5 + 0.01
    done_of = affine(image=image, segmentation=torch.ones(1, 10, 12, 14))
    assert done_of["image"].shape == done_of["segmentation"].shape == (1, 6, 8, 10)


def test_flat_patches__turn_in_the_plane(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    transforms = trainer.get_training_transforms(
        [6, 20, 20], None, None, (), True, use_mask_for_norm=[False], is_cascaded=False, foreground_labels=(1, 2),
        regions=None, ignore_label=None,
    )  # fmt: skip
    made = transforms(image=torch.rand(1, 6, 24, 24), segmentation=torch.zeros(1, 6, 24, 24, dtype=torch.int16))
    assert made["image"].shape == (1, 6, 20, 20) and made["segmentation"].shape == (1, 6, 20, 20)


def test_regions__are_refused(flare: Path) -> None:
    regions: dict[str, Any] = {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 2]}
    with pytest.raises(UserError, match=r"regions.*train nnUNetTrainer_SSLUNetFinetune"):
        make_trainer(flare, "PimpicFinetune", **regions)


def test_batch__of_random_labels_gives_the_loss_of_the_network(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    trainer.initialize()
    batch = batch_of(trainer, ["a", "b"])
    with torch.no_grad():
        expected = softmax_dice_loss(trainer.network(batch["data"]), batch["target"])
    assert trainer.train_step(batch)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert "Backbone from random" in log_of(trainer)


def test_continued__a_training_of_an_earlier_version_goes_on_and_says_what_changed(flare: Path) -> None:
    trainer = make_trainer(flare, "PimpicFinetune")
    trainer.initialize()
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    again = make_trainer(flare, "PimpicFinetune", continued=True)
    again.load_checkpoint(file)
    assert "WARNING: this training began" not in log_of(again)
    del trainer.plans_manager.plans["nnssl"]["recipe"]
    trainer.save_checkpoint(file)
    again = make_trainer(flare, "PimpicFinetune", continued=True)
    again.load_checkpoint(file)
    assert "WARNING: this training began with nnU-Net's loss" in log_of(again)

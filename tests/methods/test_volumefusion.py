from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.loader import RelativePosition, SampleDataset
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Batch, Match
from nnssl.methods.volumefusion.fusion import class_maps, fused, sample_boxes
from nnssl.methods.volumefusion.loss import accuracies, fusion_loss
from nnssl.methods.volumefusion.method import VolumeFusion, VolumeFusionConfig
from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.pretraining.optimisation import build_optimiser
from tests.networks.helpers import unet_configuration
from tests.runs import make_setup
from tests.volumes import add_volume, make_folder

PATCH = (16, 16, 24)
STILL = dict.fromkeys(
    (
        "rotation_probability", "scale_probability", "flip_probability", "noise_probability", "gamma_probability",
        "brightness_probability",
    ),
    0.0,
)  # fmt: skip


def _config(**changes: Any) -> VolumeFusionConfig:
    values: dict[str, Any] = {"batch_size": 2, "patch_size": PATCH, **changes}
    return VolumeFusionConfig(**values)


def _unet() -> FeaturePyramid:
    return backbone_of(unet_configuration("PlainConvUNet", [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 6, 8]), "decoder")


def _method_and_batch(tmp_path: Path, **changes: Any) -> tuple[VolumeFusion, Batch]:
    """Volume 0 is 3 everywhere, volume 1 is 7, and each is mixed into the other."""
    torch.manual_seed(0)
    config, folder, samples = _config(**changes), make_folder(tmp_path), []
    for i, value in enumerate((3.0, 7.0)):
        add_volume(folder, f"case_{i}", np.full((1, 20, 30, 26), value))

    def other(volume: BloscVolume, rng: np.random.Generator) -> Match:
        return RelativePosition().match(volume, folder.open(f"case_{1 - volume.index}", 1 - volume.index), rng)

    for i in range(2):
        samples.append(VolumeFusion.sample(folder.open(f"case_{i}", i, other), config, np.random.default_rng(i)))
    return VolumeFusion(_unet(), config), VolumeFusion.collate(samples)


def test_augment__every_voxel_holds_what_its_class_says(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path, **STILL)
    boxes, numbers = batch["boxes"].numpy(), batch["box_classes"].numpy()
    views = method.augment(batch)
    expected = np.zeros((2, 1, *PATCH))
    for i in range(2):
        for ((z, y, x), (z_end, y_end, x_end)), number in zip(boxes[i], numbers[i], strict=True):
            expected[i, 0, z:z_end, y:y_end, x:x_end] = number
    assert np.array_equal(views["classes"].numpy(), expected) and len(np.unique(expected)) > 3
    share = torch.from_numpy(expected).float() / 4
    first, second = 3 + 4 * share[:1], 7 - 4 * share[1:]  # background + alpha * (foreground - background)
    torch.testing.assert_close(views["crops"], torch.cat([first, second]))
    assert views["counted"].all()


def test_augment__only_places_of_both_volumes_count(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path, **STILL)
    batch["starts"][0, 1, 0], batch["starts"][1, 0, 2] = -3, 6  # foreground of the first, background of the second
    counted = method.augment(batch)["counted"][:, 0]
    assert not counted[0, :3].any() and counted[0, 3:].all()
    assert not counted[1, ..., 20:].any() and counted[1, ..., :20].all()


def test_augment__each_volume_is_changed_by_itself(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path, **STILL | {"brightness_probability": 1.0})
    batch["box_classes"].zero_()
    only = method.augment({name: x.clone() for name, x in batch.items()})["crops"]
    batch["brightness"][:, 1] = 99.0  # of the foreground, which is nowhere now
    assert torch.equal(method.augment(batch)["crops"], only)
    assert float((only[0] - 3).abs().min()) > 0 and float(only[0].std()) < 1e-5


def test_sample_boxes__are_inside_and_of_the_sizes_and_numbers_that_are_asked_for() -> None:
    draws = [sample_boxes(np.random.default_rng(seed), (64, 128, 6), _config()) for seed in range(200)]
    again = sample_boxes(np.random.default_rng(7), (64, 128, 6), _config())
    assert all(np.array_equal(draws[7][name], again[name]) for name in again)
    boxes = np.stack([d["boxes"] for d in draws])
    sides = boxes[:, :, 1] - boxes[:, :, 0]
    real = sides.min(-1) > 0
    assert set(real.sum(1)) == set(range(10, 40)) and (sides[~real] == 0).all()
    assert sides[real].min(0).tolist() == [8, 8, 3] and sides[real].max(0).tolist() == [40, 80, 3]
    assert boxes.min() == 0 and boxes[:, :, 1].max((0, 1)).tolist() == [64, 128, 6]
    shares = np.bincount(np.concatenate([d["box_classes"] for d in draws]), minlength=5) / (200 * 39)
    assert np.allclose(shares, 0.2, atol=0.03)


def test_class_maps__later_boxes_cover_earlier_ones() -> None:
    boxes = torch.tensor([[[[0, 0, 0], [2, 2, 2]], [[1, 1, 1], [3, 3, 3]], [[0, 0, 0], [0, 3, 3]]]])
    classes = class_maps(boxes, torch.tensor([[4, 1, 3]], dtype=torch.uint8), (3, 3, 4))[0, 0]
    assert classes[0, 0, 0] == 4 and classes[1, 1, 1] == 1 and classes[2, 2, 2] == 1 and classes[2, 2, 3] == 0
    assert int((classes == 4).sum()) == 7 and not (classes == 3).any()
    ends = torch.tensor([0, 4], dtype=torch.uint8).view(2, 1, 1, 1, 1)
    first, second = torch.randn(2, 2, 1, 1, 1), torch.randn(2, 2, 1, 1, 1)
    mixed = fused(first, second, ends, 5)
    assert torch.equal(mixed[0], first[0]) and torch.equal(mixed[1], second[1])


def test_fusion_loss__is_nnunets_where_all_voxels_count() -> None:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    torch.manual_seed(0)
    logits, classes = torch.randn(2, 5, 3, 4, 5), torch.randint(0, 5, (2, 1, 3, 4, 5), dtype=torch.uint8)
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    stock = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)(logits, classes.long())
    everything = torch.ones_like(classes, dtype=torch.bool)
    torch.testing.assert_close(fusion_loss(logits, classes, everything).mean(), stock + 1)
    part = torch.rand(everything.shape) < 0.6
    expected = fusion_loss(logits, classes, part)
    wild = torch.where(part, logits, 50 * torch.randn_like(logits))
    torch.testing.assert_close(fusion_loss(wild, torch.where(part, classes, 4 - classes), part), expected)
    perfect = 50 * torch.nn.functional.one_hot(classes[:, 0].long(), 5).movedim(-1, 1)
    assert fusion_loss(perfect.float(), classes, part).max() < 1e-4
    leaf = logits.clone().requires_grad_()
    nothing = fusion_loss(leaf, classes, torch.zeros_like(part))
    nothing.sum().backward()
    assert nothing.tolist() == [0.0, 0.0] and leaf.grad is not None and not leaf.grad.any()


def test_accuracies__chance_is_one_over_the_classes() -> None:
    classes = torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.uint8).view(1, 1, 1, 1, 6)
    counted = torch.tensor([True] * 5 + [False]).view(1, 1, 1, 1, 6)
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 0, 2]), 3).float().T.view(1, 3, 1, 1, 6)
    found = accuracies(logits, classes, counted)
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1 / 2, 7 / 12]))  # class 2 is not counted: the mean
    constant = torch.zeros(1, 3, 1, 1, 6)
    constant[:, 1] = 1
    assert accuracies(constant, classes, torch.ones_like(counted)).mean().item() == pytest.approx(1 / 3)


def test_step__it_learns_to_tell_the_weights_with_every_parameter(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path, optimiser="adam", learning_rate=0.03, **STILL)
    batch = {name: x[:1] for name, x in batch.items()}
    batch, optimiser, told = method.augment(batch), build_optimiser(method.config, method.parameters()), []
    for _ in range(20):
        output = method(batch)
        optimiser.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
        optimiser.step()
        told.append((output.loss.item(), output.terms["accuracy"].item()))
    assert told[-1][0] < 0.7 * told[0][0] and told[-1][1] > 0.3
    assert output.embeddings.shape == (1, 8) and set(output.terms) == {"accuracy", *(f"accuracy_{k}" for k in range(5))}


def test_step__a_network_of_tokens_gets_a_linear_layer_to_the_voxels() -> None:
    class Coarse(FPN3d):
        def __init__(self) -> None:
            super().__init__(1, 4, 3)
            self.channels, self.strides = self.channels[1:], self.strides[1:]

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return super().forward(x)[1:]

    method = VolumeFusion(Coarse(), _config())
    logits, pooled = method.predict(torch.randn(2, 1, *PATCH))
    assert logits.shape == (2, 5, *PATCH) and pooled.shape == (2, 16)


def test_sample__does_not_depend_on_the_rest_of_the_batch(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, "volumefusion", batch_size=4)
    samples = [
        [SampleDataset(VolumeFusion, setup.config, setup.train, setup.val)[("train", 1, i)][1] for i in order]
        for order in ((0, 1, 2, 3), (2, 3))
    ]
    for ours, theirs in zip(samples[0][2:], samples[1], strict=True):
        assert isinstance(ours, dict) and isinstance(theirs, dict)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert not np.array_equal(*ours["crops"])
    (alone,) = (SampleDataset(VolumeFusion, setup.config, setup.train, setup.val)[("val", 0, 0)][1],)
    assert isinstance(alone, dict) and not np.array_equal(*alone["crops"]), "the only held-out volume meets another one"


def test_pictures__show_the_fused_crop_the_weights_and_what_is_predicted(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path)
    views = method.eval().augment(batch)
    rows, drawn = VolumeFusion.panels(views, method.config), method.reconstruction(views)
    assert [len(row) for row in rows] == [2, 2] and [len(row) for row in drawn] == [3, 3]
    for i, (row, more) in enumerate(zip(rows, drawn, strict=True)):
        assert np.array_equal(row[1].image, views["classes"][i, 0, PATCH[0] // 2]) and row[1].values == (0, 4)
        assert np.array_equal(more[0].image, row[0].image) and more[2].image.shape == PATCH[1:]
    boxes = VolumeFusion.crop_boxes(batch, method.config)
    assert boxes is not None and (boxes[:, 0, 1] - boxes[:, 0, 0]).tolist() == [list(PATCH)] * 2


@pytest.mark.parametrize(
    ("option", "value"), [("boxes", (9, 3)), ("box_share", 1.5), ("classes", 1), ("box_side", 0), ("scale", (0.0, 1.0))]
)
def test_config__refuses(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        partial(_config, **{option: value})()

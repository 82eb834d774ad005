from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.methods.base import Batch
from nnssl.methods.shared.spatial import apply_spatial, sample_spatial
from nnssl.methods.unet_mae.densify import Densify
from nnssl.methods.unet_mae.method import UnetMae, UnetMaeConfig, hidden_mse
from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pyramid import FeaturePyramid, spread
from nnssl.networks.sparse import HiddenCells
from nnssl.pretraining.optimisation import build_optimiser, learning_rate
from tests.networks.helpers import unet_configuration
from tests.volumes import add_volume, make_folder

PATCH = (16, 16, 24)
STILL = {"rotation_probability": 0.0, "scale_probability": 0.0, "flip_probability": 0.0}


def _config(**changes: Any) -> UnetMaeConfig:
    values: dict[str, Any] = {"batch_size": 2, "patch_size": PATCH, **changes}
    return UnetMaeConfig(**values)


def _unet(levels: Any = "decoder") -> FeaturePyramid:
    return backbone_of(unet_configuration("PlainConvUNet", [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [4, 6, 8]), levels)


def _method_and_batch(tmp_path: Path, **changes: Any) -> tuple[UnetMae, Batch]:
    torch.manual_seed(0)
    config = _config(**changes)
    folder, samples = make_folder(tmp_path), []
    for i in range(2):
        add_volume(folder, f"case_{i}", np.random.default_rng(i).random((1, 20, 30, 26)))
        samples.append(UnetMae.sample(folder.open(f"case_{i}", i), config, np.random.default_rng(i)))
    return UnetMae(_unet(), config), UnetMae.collate(samples)


@pytest.mark.parametrize("sparse", [False, True])
def test_step__hidden_voxels_are_the_target_and_never_the_input(tmp_path: Path, sparse: bool) -> None:
    method, batch = _method_and_batch(tmp_path, sparse=sparse, **STILL)
    batch = method.eval().augment(batch)
    hidden = spread(batch["hidden"][:, 0], PATCH)
    crops, masks = batch["crops"][:, 0], batch["hidden"][:, 0]
    assert hidden.float().mean() == 0.75
    predicted, _ = method.predict(crops, masks)
    assert torch.equal(method.predict(crops.masked_fill(hidden, float("nan")), masks)[0], predicted)
    errors = [(predicted[i, 0] - crops[i, 0])[hidden[i, 0]].square().mean() for i in range(2)]
    torch.testing.assert_close(method.step(batch).loss, torch.stack(errors).mean())


@pytest.mark.parametrize("sparse", [False, True])
def test_step__it_learns_to_fill_in_one_crop_with_every_parameter(tmp_path: Path, sparse: bool) -> None:
    method, batch = _method_and_batch(tmp_path, sparse=sparse, learning_rate=0.1, momentum=0.5, **STILL)
    waves = torch.linspace(0, 6, 24).sin() + torch.linspace(0, 3, 16)[:, None].cos()
    batch["crops"] = waves.expand(2, 1, 1, *PATCH).contiguous()
    batch, optimiser, losses = method.augment(batch), build_optimiser(method.config, method.parameters()), []
    for _ in range(20):
        loss = method(batch).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0] and optimiser.defaults["nesterov"]


def test_densify__hidden_cells_hold_the_token() -> None:
    hidden = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    hidden[0, 1] = True
    densify, level = Densify([3]), torch.randn(1, 3, 4, 4, 4)
    torch.nn.init.dirac_(densify.layers[0].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(densify.layers[0].bias)  # type: ignore[arg-type]
    (dense,) = densify([level], HiddenCells(hidden))
    torch.testing.assert_close(dense[:, :, :2], level[:, :, :2])
    torch.testing.assert_close(dense[0, :, 3, 1, 2], densify.tokens[0])


def test_hidden_mse__counts_single_voxels_and_an_empty_crop_is_an_attached_zero() -> None:
    prediction, target = torch.zeros(2, 2, 1, 1, 3, requires_grad=True), torch.ones(2, 2, 1, 1, 3)
    target[0, :, ..., 1] = 3
    counted = torch.tensor([[True, True, False], [False, False, False]]).view(2, 1, 1, 1, 3)
    loss = hidden_mse(prediction, target, counted)
    loss.sum().backward()
    assert loss.tolist() == [5.0, 0.0] and prediction.grad is not None and not prediction.grad[1].any()


def test_apply_spatial__a_still_crop_is_kept_and_mirrors_are_exact() -> None:
    crops, ones = torch.randn(2, 1, 4, 6, 8), torch.ones(2, 3)
    flips = torch.tensor([[False] * 3, [True, False, True]])
    params = {"angles": torch.zeros(2, 3), "zooms": torch.ones(2), "flips": flips}
    starts, sizes = torch.tensor([[0, 0, 0], [-1, 2, 3]]), torch.tensor([[4, 6, 8], [10, 9, 10]])
    moved, inside = apply_spatial(crops, ones, params, starts, sizes)
    assert torch.equal(moved[0], crops[0]) and torch.equal(moved[1], crops[1].flip(1, 3))
    assert inside[0].all()
    wanted = torch.zeros(4, 6, 8, dtype=torch.bool)
    wanted[1:, :, :7] = True
    assert torch.equal(inside[1, 0], wanted.flip(0, 2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_apply_spatial__turns_a_quarter_in_millimetres(axis: int) -> None:
    crop = torch.randn(1, 1, 6, 6, 6)
    crop[0, 0, 0, 0, 0] = 7  # so that the turn has no symmetry
    angles = torch.zeros(1, 3)
    angles[0, axis] = torch.pi / 2
    still = {"zooms": torch.ones(1), "flips": torch.zeros(1, 3, dtype=torch.bool)}
    box = {"starts": torch.zeros(1, 3, dtype=torch.long), "sizes": torch.full((1, 3), 6)}
    turned, inside = apply_spatial(crop, torch.full((1, 3), 2.0), {"angles": angles, **still}, **box)
    one, two = (a + 2 for a in range(3) if a != axis)
    assert any(torch.allclose(turned, torch.rot90(crop, k, (one, two)), atol=1e-4) for k in (1, 3)) and inside.all()
    plane = [a for a in range(3) if a != axis]
    spacing = torch.ones(1, 3)
    spacing[0, plane[0]] = 2.0  # 12 mm on one side and 6 on the other: of six voxels, two show what was there
    _, inside = apply_spatial(crop, spacing, {"angles": angles, **still}, **box)
    assert inside.float().mean().item() == pytest.approx(1 / 3)


def test_apply_spatial__a_zoom_shows_less_enlarged() -> None:
    crop = torch.linspace(-1, 1, 16)[:, None, None].expand(1, 1, 16, 4, 4).contiguous()
    params = {"angles": torch.zeros(1, 3), "zooms": torch.full((1,), 2.0), "flips": torch.zeros(1, 3).bool()}
    zeros = torch.zeros(1, 3, dtype=torch.long)
    zoomed, inside = apply_spatial(crop, torch.ones(1, 3), params, zeros, torch.tensor([[16, 4, 4]]))
    torch.testing.assert_close(zoomed, crop / 2, atol=1e-5, rtol=0)
    assert inside.all()


def test_sample_spatial__draws_are_the_generators_and_as_often_as_asked() -> None:
    draws = [sample_spatial(np.random.default_rng(seed), 1, _config()) for seed in range(300)]
    again = sample_spatial(np.random.default_rng(5), 1, _config())
    assert all(np.array_equal(draws[5][name], again[name]) for name in again)
    turned, scaled = (np.mean([(d[k] != v).any() for d in draws]) for k, v in (("angles", 0), ("zooms", 1)))
    assert abs(turned - 0.2) < 0.08 and abs(scaled - 0.2) < 0.08
    assert max(np.abs(d["angles"]).max() for d in draws) <= np.float32(np.pi / 6)


def test_reconstruction__shows_crop_gaps_and_what_fills_them(tmp_path: Path) -> None:
    method, batch = _method_and_batch(tmp_path)
    batch = method.eval().augment(batch)
    rows, views = method.reconstruction(batch), UnetMae.panels(batch, method.config)
    boxes = UnetMae.crop_boxes(batch, method.config)
    assert boxes is not None and (boxes[:, 0, 1] - boxes[:, 0, 0]).tolist() == [list(PATCH)] * len(batch["crops"])
    gaps = spread(batch["hidden"][:, 0], PATCH)[:, 0, PATCH[0] // 2].numpy()
    for row, view, gap in zip(rows, views, gaps, strict=True):
        whole, seen, filled = (panel.image for panel in row)
        np.testing.assert_array_equal(view[1].image, seen)
        np.testing.assert_array_equal(seen, np.where(gap, 0, whole))
        np.testing.assert_array_equal(filled[~gap], whole[~gap])
        assert not np.allclose(filled[gap], whole[gap])


def test_check__refuses_what_does_not_fit() -> None:
    UnetMae.check(_config(sparse=True), _unet())
    with pytest.raises(UserError, match="sparse=true"):
        UnetMae.check(_config(sparse=True), FPN3d(1, 4, 2))
    with pytest.raises(UserError, match="hides all 2 blocks"):
        UnetMae.check(_config(patch_size=(8, 8, 16)), _unet())
    coarse = _unet()
    coarse.strides = coarse.strides[1:]
    with pytest.raises(UserError, match="stride of 2,2,2"):
        UnetMae.check(_config(), coarse)


def test_learning_rate__falls_as_nnunets() -> None:
    config = _config(num_epochs=10, steps_per_epoch=1)
    assert [learning_rate(config, s) for s in (0, 5, 9)] == pytest.approx(
        [1e-2 * (1 - s / 10) ** 0.9 for s in (0, 5, 9)]
    )

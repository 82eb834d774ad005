from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.methods.base import Batch
from nnssl.methods.mae.method import MaskedAutoencoder
from nnssl.methods.options import from_plain, new_options, to_plain
from nnssl.methods.registry import get_method
from nnssl.methods.shared.masked_method import MaskedConfig
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pyramid import BlockMask, spread
from nnssl.pretraining.pictures import draw_panels
from tests.volumes import add_volume, index_volume, make_folder

PATCH = (16, 16, 24)


def mae_config(**changes: Any) -> MaskedConfig:
    small: dict[str, Any] = {"token_width": 12, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
    return MaskedConfig(**{"batch_size": 2, "patch_size": PATCH, **small, **changes})


def method_and_batch(tmp_path: Path, **changes: Any) -> tuple[MaskedAutoencoder, Batch]:
    torch.manual_seed(0)
    config = mae_config(**changes)
    method = MaskedAutoencoder(FPN3d(1, 4, 2, levels="encoder"), config)
    folder = make_folder(tmp_path)
    samples = []
    for i in range(2):
        add_volume(folder, f"case_{i}", np.random.default_rng(i).random((1, 20, 30, 26)))
        samples.append(MaskedAutoencoder.sample(folder.open(f"case_{i}", i), config, np.random.default_rng(i)))
    return method, MaskedAutoencoder.collate(samples)


def test_sample__is_a_crop_around_body_and_a_function_of_the_generator(tmp_path: Path) -> None:
    folder, size = make_folder(tmp_path), (20, 30, 26)
    body = np.zeros(size, dtype=bool)
    body[4:6, 20:24, 2:9] = True
    add_volume(folder, "a", index_volume(size) + 1, body)
    for seed in range(10):
        one, two = (
            MaskedAutoencoder.sample(folder.open("a"), mae_config(), np.random.default_rng(seed)) for _ in range(2)
        )
        assert all(np.array_equal(one[k], two[k]) for k in one)
        start = one["starts"][0]
        assert one["crops"].shape == (1, 1, *PATCH) and one["sizes"].tolist() == [list(size)]
        assert body[tuple(map(slice, start, start + PATCH))].any()
        assert one["crops"][0, 0, 0, 0, 0] == np.ravel_multi_index(tuple(start), size) + 1


def test_augment__masks_are_each_crops_own_and_exact(tmp_path: Path) -> None:
    method, batch = method_and_batch(tmp_path)
    assert method.block == (8, 8, 8) and method.grid == (2, 2, 3)
    augmented = method.augment(batch)
    hidden = augmented["hidden"]
    assert hidden.shape == (2, 1, 2, 2, 3) and hidden.flatten(1).sum(1).tolist() == [9, 9]
    assert not torch.equal(hidden[0], hidden[1]) and augmented["inside"].all()
    assert torch.equal(method.augment(batch)["hidden"], hidden)


def test_step__hidden_voxels_are_the_target_and_nothing_else_of_the_loss(tmp_path: Path) -> None:
    method, batch = method_and_batch(tmp_path)
    method.eval()
    batch = method.augment(batch)
    loss = method.step(batch).loss
    assert 0.5 < loss.item() < 3, "about the variance of a normalised block"
    hidden = spread(batch["hidden"][:, 0], PATCH)[:, None]
    scaled = torch.where(hidden, 5 * batch["crops"] - 3, batch["crops"])
    torch.testing.assert_close(method.step({**batch, "crops": scaled}).loss, loss, rtol=1e-4, atol=0)
    noise = torch.where(hidden, torch.randn_like(batch["crops"]), batch["crops"])
    assert not torch.allclose(method.step({**batch, "crops": noise}).loss, loss, rtol=1e-3)
    fewer = batch["inside"] & (torch.arange(3) == 0)
    assert not torch.allclose(method.step({**batch, "inside": fewer}).loss, loss, rtol=1e-4)


def test_step__it_learns_to_fill_in_one_crop(tmp_path: Path) -> None:
    method, batch = method_and_batch(tmp_path)
    waves = torch.linspace(0, 6, 24).sin() + torch.linspace(0, 3, 16)[:, None].cos()
    batch["crops"] = waves.expand(2, 1, 1, *PATCH).contiguous()
    batch = method.augment(batch)
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = method.step(batch).loss
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.3 * losses[0]


def test_step__padding_is_not_predicted_and_constant_blocks_are_finite(tmp_path: Path) -> None:
    method, _ = method_and_batch(tmp_path)
    folder = make_folder(tmp_path, name="Dataset501_Small")
    add_volume(folder, "a", np.ones((1, 4, 20, 30)))
    config = mae_config(batch_size=1)
    sample = MaskedAutoencoder.sample(folder.open("a"), config, np.random.default_rng(0))
    batch = method.augment(MaskedAutoencoder.collate([sample]))
    assert 0 < batch["inside"].sum() < batch["inside"].numel()
    output = method.step(batch)
    output.loss.backward()
    assert output.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_step__a_ratio_of_zero_is_an_attached_zero(tmp_path: Path) -> None:
    method, batch = method_and_batch(tmp_path, mask_ratio=0.0)
    output = method.step(method.augment(batch))
    output.loss.backward()
    assert output.loss.item() == 0 and output.embeddings.shape == (2, 12)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_check__refuses_a_patch_of_which_nothing_is_visible() -> None:
    backbone = FPN3d(1, 4, 2, levels="encoder")
    with pytest.raises(UserError, match="hides all 2 blocks"):
        MaskedAutoencoder.check(mae_config(patch_size=(8, 8, 16)), backbone)
    MaskedAutoencoder.check(mae_config(patch_size=(8, 8, 16), mask_ratio=0.5), backbone)
    MaskedAutoencoder.check(mae_config(patch_size=(8, 8, 16), mask_block=(4, 4, 4)), backbone)


@pytest.mark.parametrize(("option", "value"), [("mask_ratio", 1.0), ("decoder_heads", 5), ("token_width", 0)])
def test_config__refuses(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        mae_config(**{option: value})


@pytest.mark.rendered
def test_panels_and_reconstruction__show_crop_gaps_and_what_fills_them(tmp_path: Path) -> None:
    method, batch = method_and_batch(tmp_path)
    batch = method.eval().augment(batch)
    views = MaskedAutoencoder.panels(batch, method.config)
    assert len(views) == 2 and all(len(row) == 2 for row in views)
    rows = method.reconstruction(batch)
    hidden = spread(batch["hidden"][:, 0], PATCH)[:, 0, PATCH[0] // 2].numpy()
    assert len(rows) == 2
    for row, view, gaps, crop in zip(rows, views, hidden, batch["crops"][:, 0, 0].numpy(), strict=True):
        whole, seen, filled = (panel.image for panel in row)
        np.testing.assert_array_equal(whole, crop[PATCH[0] // 2])
        np.testing.assert_array_equal(seen, np.where(gaps, 0, whole))
        np.testing.assert_array_equal(view[1].image, seen)
        np.testing.assert_array_equal(filled[~gaps], whole[~gaps])
        assert gaps.any() and not np.allclose(filled[gaps], whole[gaps]) and np.isfinite(filled).all()
    draw_panels(rows, tmp_path / "reconstruction.png", "mae")
    assert (tmp_path / "reconstruction.png").stat().st_size > 10_000


def test_registry__knows_it() -> None:
    assert get_method("mae") is MaskedAutoencoder and MaskedAutoencoder.levels == "encoder"


@pytest.mark.parametrize("sparse", [True, False])
def test_step__hidden_values_never_reach_the_encoder(tmp_path: Path, sparse: bool) -> None:
    method, batch = method_and_batch(tmp_path, sparse=sparse)
    batch = method.eval().augment(batch)
    crops, hidden = batch["crops"].flatten(0, 1), batch["hidden"].flatten(0, 1)
    gaps = spread(hidden, PATCH)
    for value in (float("nan"), 1e6):
        pairs = zip(method.encode(crops, hidden), method.encode(crops.masked_fill(gaps, value), hidden), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    whole = torch.zeros_like(hidden)
    of_whole, dense = (method.tokens(method.backbone, crops, method.grid, m, sparse) for m in (_visible(whole), None))
    torch.testing.assert_close(of_whole, dense, rtol=0, atol=1e-5)


def _visible(hidden: torch.Tensor) -> BlockMask:
    return BlockMask(hidden, torch.arange(hidden[0].numel()).expand(len(hidden), -1))


def test_config__a_run_of_an_older_version_goes_on_with_zeros_in_hidden_voxels() -> None:
    stored = to_plain(mae_config())
    assert stored.pop("sparse") is True
    assert from_plain(MaskedConfig, stored) == mae_config(sparse=False) and new_options(mae_config(), stored) == []

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl import load_pretrained, pretrain
from nnssl.core.errors import UserError
from nnssl.methods.base import Batch
from nnssl.methods.simclr.method import Simclr, SimclrConfig, nt_xent
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.metrics import read_rows
from tests.phantoms import write_ct_dataset
from tests.volumes import add_volume, index_volume, make_folder

PATCH = (4, 8, 8)
STILL = {"noise_probability": 0.0, "gamma_probability": 0.0, "brightness_probability": 0.0}
VARIANTS = ["overlap", "intra_scan"]


def _config(**changes: Any) -> SimclrConfig:
    small = {"batch_size": 3, "patch_size": PATCH, "intra_scan_crops": 4, "hidden_dim": 16, "projection_dim": 8}
    return SimclrConfig(**{**small, **changes})


def _batch(folder: Path, config: SimclrConfig, size: tuple[int, int, int] = (12, 20, 20)) -> Batch:
    volumes, rng = make_folder(folder), np.random.default_rng(0)
    for i in range(config.volumes):
        add_volume(volumes, f"case_{i}", rng.random((1, *size)))
    samples = [
        Simclr.sample(volumes.open(f"case_{i}", i), config, np.random.default_rng([1, i]))
        for i in range(config.volumes)
    ]
    return Simclr.collate(samples)


def _plain(vectors: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of views (N, 2, d) over the dense matrix of all 2N, in which each is to find its other view."""
    z = torch.nn.functional.normalize(vectors.flatten(0, 1), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(z)) ^ 1)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("within", [False, True])
def test_nt_xent__equals_the_dense_one_and_its_gradient(within: bool, temperature: float) -> None:
    vectors = torch.randn(3, 5, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sources = torch.arange(60.0).view(3, 5, 4)
    groups = vectors if within else vectors.flatten(0, 1)[None]
    results = []
    for loss_of in (
        lambda v: nt_xent(v, temperature, within, sources),
        lambda v: torch.stack([_plain(g, temperature) for g in v.view(groups.shape)]).mean(),
    ):
        given = vectors.clone().requires_grad_()
        loss = loss_of(given)
        results.append((loss.detach(), *torch.autograd.grad(loss, given)))
    for streamed, dense in zip(*results, strict=True):
        torch.testing.assert_close(streamed, dense)


@pytest.mark.parametrize("within", [False, True])
def test_nt_xent__near_crops_of_a_scan_are_no_negatives(within: bool) -> None:
    vectors = torch.randn(2, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sources = torch.zeros(2, 3, 4)
    sources[1, :, 0] = 1
    sources[:, 2, 1] = 50  # the third crop is far away from the first two of its scan
    got = nt_xent(vectors, 0.5, within, sources, 10.0)
    rows, places = vectors.flatten(0, 1), sources.flatten(0, 1)
    z = torch.nn.functional.normalize(rows, dim=2).flatten(0, 1)
    same_scan = places[:, None, 0] == places[:, 0]
    allowed = ~(same_scan & ((places[:, None] - places).norm(dim=2) < 10)) & (same_scan | (not within))
    allowed = allowed.repeat_interleave(2, 0).repeat_interleave(2, 1)
    target = torch.arange(len(z)) ^ 1
    allowed[torch.arange(len(z)), target] = True
    logits = (z @ z.T / 0.5).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("size", [(14, 24, 24), (3, 9, 30)], ids=["large", "smaller than the patch"])
def test_sample__overlapping_crops_share_at_least_half(tmp_path: Path, size: tuple[int, int, int]) -> None:
    folder, config = make_folder(tmp_path), _config()
    add_volume(folder, "a", index_volume(size))
    volume, shared = folder.open("a", 5), []
    for seed in range(60):
        sample = Simclr.sample(volume, config, np.random.default_rng(seed))
        assert sample["crops"].shape == (1, 2, 1, *PATCH) and sample["sources"].shape == (1, 4)
        first, second = (set(crop[crop > 0]) for crop in sample["crops"][0])
        shared.append(len(first & second) / max(len(first), len(second)))
        assert sample["sources"][0, 0] == 5
    assert min(shared) >= 0.49 and np.mean(np.array(shared) == 1) < 0.2  # voxel 0 is not told from padding


def test_sample__crops_within_a_scan_hold_body_and_have_one_place_each(tmp_path: Path) -> None:
    folder, config = make_folder(tmp_path), _config(variant="intra_scan", intra_scan_crops=15)
    body = np.zeros((14, 24, 24), dtype=bool)
    body[3:5, 10:12, 10:12] = True
    add_volume(folder, "a", index_volume((14, 24, 24)), body)
    sample = Simclr.sample(folder.open("a"), config, np.random.default_rng(0))
    assert sample["crops"].shape == (15, 1, 1, *PATCH) and sample["flips"].shape == (30, 3)
    inside = set(index_volume((14, 24, 24))[0][body])
    assert all(inside & set(crop.ravel()) for crop in sample["crops"])
    z, y, x = np.unravel_index(sample["crops"][:, 0, 0, 0, 0, 0].astype(int), (14, 24, 24))
    centres = np.stack([z + 1.5, y + 3.5, x + 3.5], axis=1) * [2.0, 1.0, 1.0]
    np.testing.assert_allclose(sample["sources"][:, 1:], centres)


@pytest.mark.parametrize("variant", VARIANTS)
def test_augment__views_are_flipped_and_changed_on_their_own(tmp_path: Path, variant: str) -> None:
    still = _config(variant=variant, **STILL)
    batch = _batch(tmp_path / "still", replace(still, flip_probability=1.0))
    views = Simclr(FPN3d(1, 4, 2), still).augment(batch)["views"]
    assert views.shape == (3, still.crops, 2, 1, *PATCH)
    torch.testing.assert_close(views, batch["crops"].flip(-3, -2, -1).expand_as(views))
    batch = _batch(tmp_path / "loud", _config(variant=variant, flip_probability=0.0))
    change = Simclr(FPN3d(1, 4, 2), still).augment(batch)["views"] - batch["crops"]
    assert not torch.allclose(change[:, :, 0], change[:, :, 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_step__overfits_one_batch(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    config = _config(variant=variant)
    method = Simclr(FPN3d(1, 4, 2), config)
    batch = method.augment(_batch(tmp_path, config))
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        output = method(batch)
        optimiser.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None for p in method.parameters()), "DistributedDataParallel waits for all of them"
        optimiser.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0] and output.terms["similarity"] > 0.5
    assert output.embeddings.shape == (3 * config.crops * 2, 8)


def test_pretrain__crops_within_a_scan_from_dataset_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_ct_dataset(tmp_path / "raw", 500, "Phantom", 2, shape=(20, 32, 32))
    quick = ["num_epochs=1", "steps_per_epoch=2", "val_steps_per_epoch=1", "patch_size=16,16,16", "batch_size=1",
             "variant=intra_scan", "intra_scan_crops=3", "optimiser=adamw", "learning_rate=1e-4"]  # fmt: skip
    run = pretrain([500], "simclr", plans="nnsslPlans_tiny", device="cpu", options=quick, num_processes=1)
    (row,) = read_rows(run / "metrics.jsonl")
    assert 0 < row["loss"] < np.inf and row["step"] == 2
    assert load_pretrained(run).method == "simclr" and (run / "nnunet_weights.pth").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"least_overlap": 0.0}, "least_overlap must be above 0"), ({"intra_scan_crops": 1}, "intra_scan_crops must"),
     ({"intra_scan_temperature": 0.0}, "intra_scan_temperature must"), ({"hidden_dim": 0}, "hidden_dim must")],
)  # fmt: skip
def test_config__mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _config(**changes)


def test_check__a_single_volume_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(UserError, match="batch_size=2"):
        Simclr.check(_config(batch_size=1), FPN3d(1, 4, 2))
    Simclr.check(_config(batch_size=1, variant="intra_scan"), FPN3d(1, 4, 2))

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.methods.vox2vec.method import Vox2vec, Vox2vecConfig, vox2vec_segmentation_loss
from nnssl.networks.fpn_unet import FPN3d
from tests.networks.helpers import load_reference
from tests.volumes import CT, MR, add_volume, index_volume, make_folder

SAMPLER = load_reference("sampler_stats.json")


def _config(**changes: Any) -> Vox2vecConfig:
    return Vox2vecConfig(**{"batch_size": 2, "patch_size": (6, 10, 12), "voxels_per_pair": 50, **changes})


@pytest.mark.parametrize(
    "size", [(20, 31, 25), (5, 9, 30), (4, 6, 7)], ids=["large", "mixed", "smaller than the patch"]
)
def test_sample__matched_voxels_are_the_same_source_voxel(tmp_path: Path, size: tuple[int, int, int]) -> None:
    folder, image = make_folder(tmp_path), index_volume(size) + 1  # 0 is the padding
    body = np.random.default_rng(1).random(size) > 0.4
    add_volume(folder, "a", image, body)
    volume, config = folder.open("a", 7), _config()
    for seed in range(50):
        sample = Vox2vec.sample(volume, config, np.random.default_rng(seed))
        crops, voxels = sample["crops"], sample["voxels"]
        assert crops.shape == (2, 1, 6, 10, 12)
        assert 1 <= len(voxels) <= 50
        source = [crops[k, 0][tuple(voxels[:, k].T)] for k in range(2)]
        np.testing.assert_array_equal(source[0], source[1])
        assert len(np.unique(source[0])) == len(voxels), "a voxel was drawn twice"
        position = np.stack(np.unravel_index(source[0].astype(int) - 1, size), 1)
        assert body[tuple(position.T)].all()
        np.testing.assert_allclose(sample["source"], np.column_stack([np.full(len(position), 7), position * (2, 1, 1)]))
        assert (voxels >= 0).all() and (voxels < np.array([6, 10, 12])).all()


def test_sample__boxes_lie_inside_a_large_volume_and_all_overlap_is_used(tmp_path: Path) -> None:
    folder, image = make_folder(tmp_path), index_volume((20, 31, 25)) + 1
    add_volume(folder, "a", image)
    volume, config = folder.open("a"), _config(voxels_per_pair=10_000)
    for seed in range(30):
        sample = Vox2vec.sample(volume, config, np.random.default_rng(seed))
        assert (sample["crops"] > 0).all(), "a crop left the volume"
        shared = np.intersect1d(*sample["crops"].reshape(2, -1))
        assert len(shared) == len(sample["voxels"]) > 0


def test_sample__overlap_as_the_authors_sampler(tmp_path: Path) -> None:
    expected = SAMPLER["vox2vec"]["overlap_fraction"]
    assert SAMPLER["vox2vec"]["image"] == [200, 180, 80] and SAMPLER["vox2vec"]["patch"] == [128, 128, 32]
    folder = make_folder(tmp_path)
    add_volume(folder, "a", np.zeros((1, 80, 180, 200), dtype=np.float32), chunk=(32, 90, 100))
    volume, config = folder.open("a"), _config(patch_size=(32, 128, 128), voxels_per_pair=10**9)
    fractions = [
        len(Vox2vec.sample(volume, config, np.random.default_rng(s))["voxels"]) / (32 * 128 * 128) for s in range(120)
    ]
    deviation = expected["std"] / np.sqrt(expected["n"])  # of the authors' mean over 60 pairs
    assert abs(np.mean(fractions) - expected["mean"]) < 4 * deviation
    assert 0.8 < np.std(fractions) / expected["std"] < 1.25


def test_sample__is_a_function_of_the_generator(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((20, 20, 20)))
    one, two, other = (Vox2vec.sample(folder.open("a"), _config(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(one["crops"], other["crops"])


def _batch(
    tmp_path: Path, config: Vox2vecConfig, volumes: int = 2, channels: tuple[Any, ...] = (CT,)
) -> dict[str, Any]:
    folder = make_folder(tmp_path, channels)
    rng = np.random.default_rng(0)
    for i in range(volumes):
        add_volume(folder, f"case_{i}", rng.random((len(channels), 20, 24, 24)))
    samples = [
        Vox2vec.sample(folder.open(f"case_{i % volumes}", i % volumes), config, np.random.default_rng(i))
        for i in range(config.batch_size or 0)
    ]
    return Vox2vec.collate(samples)


def test_collate__voxels_carry_their_crop(tmp_path: Path) -> None:
    batch = _batch(tmp_path, _config(batch_size=3, voxels_per_pair=7))
    assert batch["crops"].shape == (3, 2, 1, 6, 10, 12)
    assert batch["voxels"].shape == (21, 2, 4) and batch["source"].shape == (21, 4)
    assert batch["voxels"][:, 0, 0].tolist() == batch["voxels"][:, 1, 0].tolist() == [0] * 7 + [1] * 7 + [2] * 7


@pytest.mark.parametrize("channels", [(CT,), (MR, MR)], ids=["CT", "two MR channels"])
def test_augment__views_differ_and_stay_finite(tmp_path: Path, channels: tuple[Any, ...]) -> None:
    batch = _batch(tmp_path, _config(), channels=channels)
    method = Vox2vec(FPN3d(len(channels), 4, 3), _config())
    augmented = method.augment(batch)
    assert augmented["crops"].shape == batch["crops"].shape and augmented["crops"].isfinite().all()
    assert not torch.equal(augmented["crops"], batch["crops"])
    assert torch.equal(augmented["crops"], method.augment(batch)["crops"]), "the parameters come with the samples"
    if channels == (CT,):
        assert augmented["crops"].min() >= 0 and augmented["crops"].max() <= 1  # the preset's plans


@pytest.mark.parametrize("joint", [False, True])
def test_step__overfits_one_batch(tmp_path: Path, joint: bool) -> None:
    torch.manual_seed(0)
    config = _config(joint_batch_norm=joint, voxels_per_pair=16)
    method = Vox2vec(FPN3d(1, 4, 3), config)
    batch = method.augment(_batch(tmp_path, config))
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        output = method(batch)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append(output.loss.item())
    assert output.embeddings.shape == (32, 128) and output.terms["pairs"] == 32
    assert losses[-1] < 0.5 * losses[0]


def test_step__batch_statistics_are_of_one_view_unless_joint(tmp_path: Path) -> None:
    config = _config()
    method = Vox2vec(FPN3d(1, 4, 3), config)
    batch = _batch(tmp_path, config)
    passes = []
    method.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    separate = method(batch).loss
    joint_method = Vox2vec(method.backbone, _config(joint_batch_norm=True))
    joint_method.head.load_state_dict(method.head.state_dict())
    joint = joint_method(batch).loss
    assert passes == [2, 2, 4]
    assert not torch.isclose(separate, joint)


def test_step__the_same_voxel_of_a_repeated_volume_is_no_negative(tmp_path: Path) -> None:
    config = _config(batch_size=2, voxels_per_pair=10_000)
    method = Vox2vec(FPN3d(1, 4, 3), config).eval()
    batch = _batch(tmp_path, config, volumes=1)
    batch = {**batch, "crops": batch["crops"][:1].expand(2, -1, -1, -1, -1, -1)}  # twice the same pair
    half = batch["voxels"][:, 0, 0] == 0
    voxels = batch["voxels"][half]
    again = voxels + voxels.new_tensor([1, 0, 0, 0])
    source = batch["source"][half]
    elsewhere = source + source.new_tensor([1, 0, 0, 0])
    views = {"crops": batch["crops"], "voxels": torch.cat([voxels, again]), "counts": batch["counts"]}
    same, distinct = (method({**views, "source": torch.cat([source, s])}).loss for s in (source, elsewhere))
    assert same < distinct - 1e-3, "the copies were counted as negatives"


def test_panels__points_are_the_same_voxels_in_both_views(tmp_path: Path) -> None:
    folder, config = make_folder(tmp_path), _config()
    add_volume(folder, "a", index_volume((20, 24, 24)))
    samples = [Vox2vec.sample(folder.open("a"), config, np.random.default_rng(i)) for i in range(2)]
    rows = Vox2vec.panels(Vox2vec.collate(samples), config)
    assert len(rows) == 2
    for first, second in rows:
        values = [[p.image[int(y), int(x)] for _, y, x in p.points] for p in (first, second)]
        assert len(values[0]) >= 1 and values[0] == values[1]


@pytest.mark.parametrize("base", [4, 6])
def test_levels__finest_contrasts_one_map_and_trains_the_whole_network(tmp_path: Path, base: int) -> None:
    folder, config = make_folder(tmp_path), _config(levels="finest", projection_dim=5)
    add_volume(folder, "a", index_volume((20, 24, 24)))
    samples = [Vox2vec.sample(folder.open("a"), config, np.random.default_rng(i)) for i in range(2)]
    method, usual = (Vox2vec(FPN3d(1, base, 3), c) for c in (config, _config()))
    assert method.head[0].in_features == base and usual.head[0].in_features == 7 * base
    assert method.backbone.state_dict().keys() == usual.backbone.state_dict().keys()  # what a transfer reads
    batch = method.augment(Vox2vec.collate(samples))
    voxels = batch["voxels"][:, 0]
    at = tuple(voxels.T)
    expected = method.head(method.backbone(batch["crops"][:, 0])[0].movedim(1, -1)[at])
    torch.testing.assert_close(method.embed(batch["crops"][:, 0], voxels, batch["counts"]), expected)
    method.step(batch).loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


REFERENCE = load_reference("vox2vec.json")["segmentation_loss"]


def reference() -> tuple[Tensor, Tensor, Tensor]:
    logits, target = (torch.tensor(REFERENCE[name], dtype=torch.float64) for name in ("logits", "target"))
    return logits, target, torch.tensor(REFERENCE["roi"])


def test_vox2vec_segmentation_loss__reference() -> None:
    logits, target, roi = reference()
    assert vox2vec_segmentation_loss(logits, target, roi).item() == pytest.approx(REFERENCE["loss_with_roi"], abs=1e-9)
    assert vox2vec_segmentation_loss(logits, target).item() == pytest.approx(REFERENCE["loss_without_roi"], abs=1e-9)


def test_vox2vec_segmentation_loss__outside_the_body_counts_for_nothing() -> None:
    logits, target, roi = reference()
    logits.requires_grad_()
    vox2vec_segmentation_loss(logits, target, roi).backward()
    outside = ~roi[:, None].expand_as(logits)
    assert logits.grad is not None and not logits.grad[outside].any() and logits.grad[~outside].all()
    changed = torch.where(outside, 50.0, logits.detach())
    torch.testing.assert_close(
        vox2vec_segmentation_loss(changed, 1 - target * ~outside - (1 - target) * ~outside, roi),
        vox2vec_segmentation_loss(changed, torch.zeros_like(target), roi),
    )


def test_vox2vec_segmentation_loss__dice_is_averaged_over_items() -> None:
    logits, target, roi = reference()
    twice = vox2vec_segmentation_loss(
        logits.repeat(2, 1, 1, 1, 1), target.repeat(2, 1, 1, 1, 1), roi.repeat(2, 1, 1, 1)
    )
    torch.testing.assert_close(twice, vox2vec_segmentation_loss(logits, target, roi))


def test_vox2vec_segmentation_loss__empty_body_has_no_gradient() -> None:
    logits, target, roi = reference()
    logits.requires_grad_()
    loss = vox2vec_segmentation_loss(logits, target, torch.zeros_like(roi))
    loss.backward()
    assert loss == 1 and logits.grad is not None and not logits.grad.any()


def test_vox2vec_segmentation_loss__half_precision_is_computed_in_float32() -> None:
    logits, target, roi = reference()
    half = logits.to(torch.bfloat16)  # these logits are exact in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vox2vec_segmentation_loss(half, target.bool(), roi)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(REFERENCE["loss_with_roi"], rel=1e-6)


@pytest.mark.parametrize(("target", "roi"), [((1, 2, 1, 2, 3), (1, 1, 2, 2)), ((1, 2, 1, 2, 2), (1, 1, 1, 2, 2))])
def test_vox2vec_segmentation_loss__bad_shapes(target: tuple[int, ...], roi: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        vox2vec_segmentation_loss(torch.zeros(1, 2, 1, 2, 2), torch.zeros(target), torch.ones(roi))

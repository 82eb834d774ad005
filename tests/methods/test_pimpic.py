from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.core.geometry import overlaps_of_patches
from nnssl.data.volumes import BloscVolume
from nnssl.methods.pimpic.method import Pimpic
from nnssl.methods.shared.overlapping_crops import cut_crops
from nnssl.networks.fpn_unet import FPN3d
from tests.methods.pimpic_batches import crops_of, joined, numbered_volume, random_batch, small_config
from tests.volumes import CT, MR, index_volume

SIZES = [(20, 31, 25), (5, 9, 30), (8, 8, 8), (3, 4, 5)]
SIZE_NAMES = ["large", "mixed", "as the patch", "smaller than the patch"]


@pytest.mark.parametrize("size", SIZES, ids=SIZE_NAMES)
def test_sample__overlap_boxes_show_the_same_source_voxels(tmp_path: Path, size: tuple[int, int, int]) -> None:
    volume, config = numbered_volume(tmp_path, size), small_config()
    for seed in range(20):
        sample = Pimpic.sample(volume, config, np.random.default_rng(seed))
        crops, boxes, overlap = crops_of(sample)[:, 0], sample["boxes"], sample["overlap"]
        assert crops.shape == (5, 8, 8, 8)
        assert (overlap == overlap.T).all() and (np.diag(overlap) == 1).all()
        for i, j in np.ndindex(5, 5):
            both = [crops[a][tuple(map(slice, *boxes[a, b]))] for a, b in ((i, j), (j, i))]
            np.testing.assert_array_equal(both[0], both[1])
            assert both[0].size == round(overlap[i, j] * 8**3)
            if (np.array(size) >= 8).all():  # else padding counts as well
                assert (crops > 0).all(), "a crop left the volume"
                assert len(np.intersect1d(crops[i], crops[j])) == both[0].size
        assert sample["pairs"].tolist() == [[i, j] for i in range(5) for j in range(i + 1, 5) if overlap[i, j] >= 0.01]


def test_sample__a_small_volume_is_whole_in_every_crop(tmp_path: Path) -> None:
    volume = numbered_volume(tmp_path, (3, 4, 5))
    crops = crops_of(Pimpic.sample(volume, small_config(crops=20), np.random.default_rng(0)))
    assert all(np.array_equal(np.sort(crop[crop > 0]), np.arange(1, 61)) for crop in crops)
    assert len({tuple(np.argwhere(crop[0] > 0)[0]) for crop in crops}) > 10, "the padding does not vary"


def test_sample__region_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = BloscVolume.read

    def counting(self: BloscVolume, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        reads.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(BloscVolume, "read", counting)
    sample = Pimpic.sample(numbered_volume(tmp_path), small_config(), np.random.default_rng(0))
    ((start, stop),) = reads
    assert start.tolist() == sample["starts"].min(0).tolist()
    assert stop.tolist() == (sample["starts"].max(0) + 8).tolist()


def test_sample__crops_lie_within_reach_of_the_anchor(tmp_path: Path) -> None:
    volume = numbered_volume(tmp_path, (40, 40, 40))
    samples = [Pimpic.sample(volume, small_config(crops=30), np.random.default_rng(s)) for s in range(20)]
    away = np.stack([s["starts"] - s["anchor"] for s in samples])
    assert away.min() == -6 and away.max() == 6  # 4 * 8 // 5
    near = Pimpic.sample(volume, small_config(spread=0.0), np.random.default_rng(0))
    assert (near["starts"] == near["anchor"]).all()


def test_sample__is_a_function_of_the_generator(tmp_path: Path) -> None:
    volume = numbered_volume(tmp_path)
    one, two, other = (Pimpic.sample(volume, small_config(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(one["region"], other["region"])


def test_sample__several_channels(tmp_path: Path) -> None:
    sample = Pimpic.sample(numbered_volume(tmp_path, channels=(MR, CT)), small_config(), np.random.default_rng(0))
    crops = crops_of(sample)
    assert crops.shape == (5, 2, 8, 8, 8)
    assert (crops[:, 1] - crops[:, 0] == 1e6).all()


def test_collate__pairs_carry_their_volume_and_weigh_as_the_mean_of_means() -> None:
    config = small_config()
    near, far = [[0, 0, 0], [1, 1, 1], [2, 2, 2]], [[0, 0, 0], [0, 0, 4], [0, 0, 50]]
    samples = []
    for starts in (near, far):
        overlap, boxes = overlaps_of_patches(np.array(starts), config.patch_size or ())
        samples.append({"boxes": boxes, "overlap": overlap, "pairs": np.argwhere(np.triu(overlap >= 0.01, k=1))})
    batch = joined(*samples)
    assert batch["pairs"].tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 2], [1, 0, 1]]
    assert batch["pair_weights"].tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def _in_common(crops: Tensor, boxes: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """What crops i and j show of the same voxels, each (C, ...)."""
    (z, y, x), (z2, y2, x2) = (tuple(map(slice, *boxes[a, b].tolist())) for a, b in ((i, j), (j, i)))
    return crops[i, :, z, y, x], crops[j, :, z2, y2, x2]


@pytest.mark.parametrize("channels", [(CT,), (MR, MR)], ids=["CT", "two MR channels"])
def test_augment__each_crop_for_itself(tmp_path: Path, channels: tuple[Any, ...]) -> None:
    config = small_config()
    method, batch = Pimpic(FPN3d(len(channels), 4, 3), config), random_batch(tmp_path, config, channels)
    augmented = method.augment(batch)
    crops = cut_crops(batch, (8, 8, 8))
    assert augmented["crops"].shape == crops.shape and augmented["crops"].isfinite().all()
    assert torch.equal(augmented["crops"], method.augment(batch)["crops"]), "the parameters come with the samples"
    change = augmented["crops"] - crops
    v, i, j = batch["pairs"][0].tolist()
    boxes = batch["boxes"][v]
    both = _in_common(change[v], boxes, i, j)
    assert not torch.allclose(*both), "what two crops have in common is still identical"


def test_augment__shared_noise_leaves_overlaps_identical(tmp_path: Path) -> None:
    config = small_config(shared_noise=True)
    batch = random_batch(tmp_path, config)
    augmented = Pimpic(FPN3d(1, 4, 3), config).augment(batch)
    noisy = (batch["noise_sigma"] > 0).all(1)
    assert noisy.any()
    changed = (augmented["crops"] - cut_crops(batch, (8, 8, 8))).flatten(1).abs().amax(1) > 0
    assert torch.equal(changed, noisy)
    for v, i, j in augmented["pairs"].tolist():
        crops, boxes = augmented["crops"][v], augmented["boxes"][v]
        torch.testing.assert_close(*_in_common(crops, boxes, i, j), rtol=0, atol=1e-6)


def test_panels__boxes_of_a_pair_frame_the_same_voxels(tmp_path: Path) -> None:
    config = small_config()
    sample = Pimpic.sample(numbered_volume(tmp_path), config, np.random.default_rng(0))
    batch = Pimpic.collate([sample])
    rows = Pimpic.panels({**batch, "crops": cut_crops(batch, (8, 8, 8))}, config)
    assert 1 <= len(rows) <= 2
    for _, *pair in rows:
        cut = []
        for panel in pair:
            ((top, left, height, width),) = panel.frames
            cut.append(panel.image[int(top) : int(top + height), int(left) : int(left + width)])
        np.testing.assert_array_equal(cut[0], cut[1])
        assert cut[0].size > 0
    picture = rows[0][0]
    assert len(picture.boxes) == 2 and all(box[2:] == (8.0, 8.0) for box in picture.boxes)
    z = int(picture.title.split("slice ")[1].split(":")[0]) - 1
    slice_of_volume = index_volume((20, 24, 22))[0, z] + 1
    shown = picture.image > picture.image.min()
    assert shown.any() and np.isin(picture.image[shown], slice_of_volume).all()

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box
from nnssl.data.presets import presets
from nnssl.data.volumes import BloscVolume
from nnssl.methods.options import from_plain, new_options, to_plain
from nnssl.methods.registry import get_method
from nnssl.methods.voco.augment import tile_body
from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.swin import SwinPyramid
from nnssl.pretraining.optimisation import build_optimiser, learning_rate
from nnssl.pretraining.pictures import draw_panels
from tests.methods.voco_batches import PATCH, small_fpn, voco_batch, voco_config
from tests.networks.helpers import load_reference
from tests.volumes import CT, MR, Channel, add_volume, index_volume, make_folder


def test_config__is_the_authors_code() -> None:
    config = VoCoConfig()
    assert config.num_epochs * config.steps_per_epoch == 250_000
    vector = load_reference("voco.json")["lr_factor"]
    for step, factor in zip(vector["steps"], vector["factor"], strict=True):
        assert learning_rate(config, step) / config.learning_rate == pytest.approx(factor, abs=1e-9)
    optimiser = build_optimiser(config, [torch.nn.Parameter(torch.zeros(2))])
    assert isinstance(optimiser, torch.optim.AdamW)
    group = optimiser.param_groups[0]
    assert group["amsgrad"] and group["weight_decay"] == 1e-2 and group["lr"] == 1e-4


def test_config__preset_gives_the_papers_sizes() -> None:
    plans = json.loads(presets()["nnsslPlans_voco"].read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1.5] * 3 and configuration["batch_size"] == 2
    config = VoCoConfig()
    assert config.body_size is not None and config.slab_base() is None and configuration["patch_size"] == [64] * 3
    _, base = tile_body(np.zeros((1, *config.body_size), dtype=np.float16), config.grid)
    assert base.tolist() == [96, 96, 96]
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    hu = np.array([-1000.0, -175.0, 37.5, 250.0, 900.0])
    clipped = np.clip(hu, window["percentile_00_5"], window["percentile_99_5"])  # nnU-Net's CTNormalization
    np.testing.assert_allclose((clipped - window["mean"]) / window["std"], [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("options", "advice"),
    [({"grid": (1, 1, 1)}, "grid=1,4,4"), ({"grid": (1, 0, 4)}, "grid must be at least 1"),
     ({"crops": 0}, "crops must"), ({"base_scale": 0.0}, "base_scale"), ({"teacher_momentum": 1.0}, "teacher_momentum"),
     ({"base_size": (0, 4, 4)}, "base_size"), ({"body_size": (96, 0, 384)}, "body_size"),
     ({"regulariser_weight": -1.0}, "regulariser_weight")],
)  # fmt: skip
def test_config__refuses(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        voco_config(**options)


def test_check__refuses_a_patch_that_swin_cannot_take() -> None:
    with torch.device("meta"):
        backbone = SwinPyramid(feature_size=12)
    VoCo.check(voco_config(patch_size=(64, 64, 64)), backbone)
    with pytest.raises(UserError, match="use 32,32,64"):
        VoCo.check(voco_config(patch_size=(32, 32, 32)), backbone)


@pytest.mark.parametrize("size", [(30, 40, 50), (6, 70, 20), (3, 4, 5)], ids=["large", "mixed", "tiny"])
@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 4), (2, 2, 3)])
def test_sample__boxes_and_labels_are_those_of_the_volume(
    tmp_path: Path, size: tuple[int, int, int], shrink: bool, grid: tuple[int, int, int]
) -> None:
    folder, image = make_folder(tmp_path), index_volume(size) + 1  # 0 is the padding
    add_volume(folder, "a", image)
    config = voco_config(grid=grid, shrink_bases=shrink, crops=3, base_scale=1.5)
    largest = config.slab_base()
    bases = int(np.prod(grid))
    for seed in range(5):
        sample = VoCo.sample(folder.open("a"), config, np.random.default_rng(seed))
        base, slab, labels = sample["base"], sample["slab"], sample["labels"]
        assert (
            slab.shape == (1, *(base * grid))
            and labels.shape == (3, bases)
            and sample["starts"].shape == (3 + bases, 3)
        )
        assert (base <= largest).all() and (shrink or (base == largest).all())
        np.testing.assert_allclose(labels.sum(1), 1, rtol=0, atol=1e-6)
        cut = [slab[0][tuple(map(slice, start, start + base))] for start in sample["starts"]]
        assert all(c.shape == tuple(base) for c in cut), "a box leaves the slab"
        for crop, row in zip(cut[:3], labels, strict=True):
            if (crop > 0).all():  # then every voxel of the crop is told by its value
                shared = [np.isin(crop, b).mean() for b in cut[3:]]
                np.testing.assert_allclose(shared, row, rtol=0, atol=1e-6)
        if shrink:
            assert (slab > 0).mean() >= np.prod(np.minimum(size, slab.shape[1:]) / slab.shape[1:]) - 1e-9
            assert (np.array(slab.shape[1:]) - np.minimum(size, slab.shape[1:]) < grid).all(), (
                "less than one voxel a base"
            )


@pytest.mark.parametrize("option", [{"base_size": (12, 9, 8)}, {"base_scale": 1.5, "patch_size": (8, 6, 5)}])
def test_sample__slab_is_around_the_body(tmp_path: Path, option: dict[str, Any]) -> None:
    folder, size = make_folder(tmp_path), (20, 60, 60)
    body = np.zeros(size, dtype=bool)
    body[4:16, 10:46, 22:50] = True
    add_volume(folder, "a", index_volume(size) + 1, body)
    for seed in range(10):
        sample = VoCo.sample(folder.open("a"), voco_config(grid=(1, 4, 4), **option), np.random.default_rng(seed))
        assert sample["base"].tolist() == [12, 9, 7]
        z, y, x = np.unravel_index(sample["slab"][0].astype(int) - 1, size)
        assert z.min() >= 4 and z.max() < 16 and y.min() == 10 and y.max() == 45 and x.min() == 22 and x.max() == 49


def test_sample__reads_the_slab_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((20, 40, 40)))
    reads = []
    read = BloscVolume.read

    def counted(self: BloscVolume, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        reads.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(BloscVolume, "read", counted)
    for config in (voco_config(base_scale=1.5), voco_config(body_size=None)):
        reads.clear()
        sample = VoCo.sample(folder.open("a"), config, np.random.default_rng(0))
        assert len(reads) == 1 and tuple(reads[0]) == sample["slab"].shape[1:]


def test_sample__is_a_function_of_the_generator(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((20, 40, 40)))
    one, two, other = (VoCo.sample(folder.open("a"), voco_config(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(one["starts"], other["starts"])


def test_sample__turns_only_where_the_patch_is_square_in_the_plane(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((20, 40, 40)))
    turned = {
        patch: np.concatenate([
            VoCo.sample(folder.open("a"), voco_config(patch_size=patch), np.random.default_rng(s))["turns"]
            for s in range(20)
        ])
        for patch in ((6, 8, 8), (8, 6, 8))
    }  # fmt: skip
    assert set(turned[6, 8, 8]) == {0, 1, 2, 3} and set(turned[8, 6, 8]) == {0}


def test_sample__neither_flips_nor_turns_where_their_probability_is_zero(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((20, 40, 40)))
    upright = voco_config(flip_probability=0.0, turn_probability=0.0)
    for seed in range(5):
        one = VoCo.sample(folder.open("a"), upright, np.random.default_rng(seed))
        assert not one["flips"].any() and not one["turns"].any()
    assert VoCo.sample(folder.open("a"), voco_config(flip_probability=1.0), np.random.default_rng(0))["flips"].all()


@pytest.mark.parametrize("option", ["flip_probability", "turn_probability"])
def test_config__refuses_what_is_no_probability(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} must be from 0 to 1"):
        voco_config(**{option: 1.5})


@pytest.mark.parametrize("channel", [Channel("CTNormalization", -175.0, 425.0), CT, MR], ids=["preset", "CT", "MR"])
def test_sample__shifts_are_a_tenth_of_the_window(tmp_path: Path, channel: Channel) -> None:
    folder = make_folder(tmp_path, (channel,))
    image = np.random.default_rng(0).random((1, 20, 40, 40))
    add_volume(folder, "a", image)
    volume, config = folder.open("a"), voco_config(crops=60)
    loud = replace(config, shift_probability=1.0, shift_hu=85.0)
    shifts = np.concatenate([VoCo.sample(volume, config, np.random.default_rng(s))["shifts"] for s in range(20)])
    low, high = np.percentile(image, [0.5, 99.5])
    largest = 42.5 / channel.std if channel.is_ct else 0.1 * (high - low)
    assert abs((shifts != 0).mean() - 0.1) < 0.03
    assert 0.9 * largest < np.abs(shifts).max() <= largest * (1 + 1e-6) and shifts.min() < 0 < shifts.max()
    more = VoCo.sample(volume, loud, np.random.default_rng(0))["shifts"]
    assert (more != 0).all() and largest < np.abs(more).max() <= 2 * largest * (1 + 1e-6)


def test_config__runs_of_older_versions_keep_their_slab_and_resizing(tmp_path: Path) -> None:
    plain = to_plain(VoCoConfig())
    old = {**{k: v for k, v in plain.items() if k not in ("body_size", "align_corners")}, "base_scale": 1.5}
    config = from_plain(VoCoConfig, {**old, "patch_size": [64, 64, 64]})
    assert (config.slab_base(), config.align_corners, VoCo.resized_body(config)) == ((96, 96, 96), False, None)
    assert new_options(config, old) == []
    assert VoCo.resized_body(from_plain(VoCoConfig, plain)) == (96, 384, 384)


def _random_body(rng: np.random.Generator, size: np.ndarray) -> tuple[np.ndarray, Box]:
    """A body that touches all sides of a random box, and that box."""
    start = rng.integers(0, size)
    stop = np.minimum(start + rng.integers(1, size + 1), size)
    body = np.zeros(size, dtype=bool)
    for corner in (start, stop - 1):
        body[tuple(corner)] = True
    return body, Box(start, stop)


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 2, 2), (2, 3, 5)])
def test_sample__bases_cover_the_whole_body_whatever_its_shape(tmp_path: Path, grid: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    folder, config = make_folder(tmp_path), voco_config(grid=grid, crops=3, body_size=None)
    for trial in range(25):
        size = rng.integers(1, 34, 3)
        body, box = _random_body(rng, size)
        image = index_volume(tuple(size.tolist()))
        add_volume(folder, f"case_{trial}", image, body)
        sample = VoCo.sample(folder.open(f"case_{trial}"), config, rng)
        base, slab, labels = sample["base"], sample["slab"][0], sample["labels"]
        inside = image[0][tuple(map(slice, box.start, box.stop))]
        cells = [slab[tuple(map(slice, at, at + base))] for at in sample["starts"]]
        for axis in range(3):  # coverage is 1 on every axis
            shown = np.isin(inside, slab).any(axis=tuple({0, 1, 2} - {axis}))
            assert shown.all() and 0 <= slab.shape[axis] - inside.shape[axis] < grid[axis]
        assert set(np.unique(slab)) == set(np.unique(inside)) and slab.shape == tuple(base * grid)
        np.testing.assert_allclose(labels.sum(1), 1, rtol=0, atol=1e-6)
        owner = np.full(slab.shape, -1)
        for k, at in enumerate(sample["starts"][3:]):
            owner[tuple(map(slice, at, at + base))] = k
        assert owner.min() == 0 and all(cell.shape == tuple(base) for cell in cells)
        for crop, row in zip(sample["starts"][:3], labels, strict=True):
            counted = np.bincount(owner[tuple(map(slice, crop, crop + base))].ravel(), minlength=len(row))
            np.testing.assert_allclose(row, counted / base.prod(), rtol=0, atol=1e-6)


def test_sample__reads_the_resized_body_in_half_precision(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", np.random.default_rng(0).random((1, 20, 33, 40)))
    sample = VoCo.sample(folder.open("a"), voco_config(body_size=(6, 20, 64)), np.random.default_rng(0))
    assert sample["slab"].dtype == np.float16 and sample["slab"].shape == (1, 6, 20, 40)
    assert sample["base"].tolist() == [6, 10, 20]


def test_collate__slabs_of_different_sizes_are_padded(tmp_path: Path) -> None:
    config = voco_config(grid=(1, 4, 4))
    batch = voco_batch(tmp_path, config)
    assert batch["base"].tolist() == [[16, 8, 8], [16, 8, 9]] and batch["slab"].shape == (2, 1, 16, 32, 36)
    alone = VoCo(small_fpn(), config).augment({k: v[:1] for k, v in batch.items()})["views"]
    torch.testing.assert_close(VoCo(small_fpn(), config).augment(batch)["views"][:1], alone)


@pytest.mark.parametrize("channels", [(CT,), (MR, MR)], ids=["CT", "two MR channels"])
def test_augment__views_have_the_patchs_size_and_depend_on_the_batch_only(
    tmp_path: Path, channels: tuple[Channel, ...]
) -> None:
    config = voco_config(crops=3)
    batch = voco_batch(tmp_path, config, channels)
    method = VoCo(small_fpn(len(channels)), config)
    before = batch["slab"].clone()
    augmented = method.augment(batch)
    assert augmented["views"].shape == (2, 3 + 4, len(channels), *PATCH) and augmented["views"].isfinite().all()
    assert torch.equal(augmented["views"], method.augment(batch)["views"]) and torch.equal(batch["slab"], before)
    still = {**batch, "shifts": batch["shifts"] + 1}
    torch.testing.assert_close(method.augment(still)["views"], augmented["views"] + 1)


@pytest.mark.rendered
def test_panels__show_the_crop_the_grid_and_the_labels(tmp_path: Path) -> None:
    config = voco_config(grid=(2, 2, 3), crops=3, patch_size=(4, 6, 6))
    batch = VoCo(small_fpn(), config).augment(voco_batch(tmp_path, config))
    rows = VoCo.panels(batch, config)
    assert len(rows) == 2 and all(len(row) == 4 for row in rows)
    for i, row in enumerate(rows):
        for k in range(2):
            slab, view = row[2 * k : 2 * k + 2]
            base = batch["base"][i].numpy()
            assert slab.image.shape == (2 * base[1], 3 * base[2]) and view.image.shape == (6, 6)
            assert len(slab.frames) == 6 and len(slab.boxes) == 1
            y, x, height, width = slab.boxes[0]
            assert (y, x) == tuple(batch["starts"][i, k, 1:].tolist()) and (height, width) == tuple(base[1:])
            assert 1 <= len(slab.texts) <= 4
            shown = {text for text, _, _ in slab.texts}
            assert shown <= {f"{v:.2f}" for v in batch["labels"][i, k].tolist() if v > 0}
    draw_panels(rows, tmp_path / "views.png", "VoCo")
    assert (tmp_path / "views.png").stat().st_size > 10_000


def test_registry__knows_it() -> None:
    assert get_method("voco") is VoCo and VoCo.levels == "encoder"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Batch
from nnssl.methods.lapn.method import Lapn, LapnConfig
from nnssl.methods.shared.overlapping_crops import overlap_fraction, to_source
from nnssl.networks.pyramid import interpolate_cells
from nnssl.pretraining.optimisation import build_optimiser, learning_rate
from nnssl.pretraining.pictures import draw_panels
from tests.methods.lapn_batches import PATCH, lapn_batch, lapn_config, small_fpn
from tests.volumes import CT, MR, Channel, add_volume, make_folder


def _ramp_volume(folder: Path, size: tuple[int, int, int], body: np.ndarray | None = None) -> BloscVolume:
    """A volume whose three channels are the coordinates z, y and x of each voxel."""
    volumes = make_folder(folder, (CT, CT, CT))
    add_volume(volumes, "a", np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")), body)
    return volumes.open("a", 5)


def test_config__is_the_papers() -> None:
    config = LapnConfig()
    assert (config.num_epochs, config.encoding_dim, config.temperature) == (500, 64, 0.07)
    assert (config.queue_size, config.key_momentum, config.points_per_pair) == (16384, 0.999, 1024)
    assert (config.least_overlap, config.scale_range, config.exclude_radius_mm) == (1 / 8, 0.1, 10.0)
    optimiser = build_optimiser(config, [torch.nn.Parameter(torch.zeros(2))])
    assert isinstance(optimiser, torch.optim.Adam) and optimiser.param_groups[0]["lr"] == 1e-4
    half = config.num_epochs * config.steps_per_epoch // 2
    assert learning_rate(config, 0) == 1e-4 and learning_rate(config, half) == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("options", "advice"),
    [({"least_overlap": 0.6}, "at most 0.548"), ({"least_overlap": 0.0}, "above 0"), ({"scale_range": 1.0}, "below 1"),
     ({"points_per_pair": 0}, "points_per_pair"), ({"queue_size": 0}, "queue_size"), ({"temperature": 0.0}, "temp"),
     ({"key_momentum": 1.0}, "key_momentum"), ({"encoding_dim": 0}, "encoding_dim"),
     ({"exclude_radius_mm": -1.0}, "exclude_radius_mm")],
)  # fmt: skip
def test_config__refuses(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        lapn_config(**options)


@pytest.mark.parametrize("size", [(30, 40, 36), (6, 40, 10), (5, 6, 7)], ids=["large", "mixed", "small"])
def test_augment__matched_points_show_the_same_place_of_the_volume(tmp_path: Path, size: tuple[int, int, int]) -> None:
    """The whole way: crops, scales, resampling, points and millimetres, on a volume of coordinates."""
    volume, config = _ramp_volume(tmp_path, size), lapn_config(batch_size=1)
    compared = 0
    for seed in range(12):
        sample = Lapn.sample(volume, config, np.random.default_rng(seed))
        assert overlap_fraction(sample["starts"], sample["scales"], PATCH) >= 1 / 8 - 1e-6
        batch = Lapn(small_fpn(3), config).augment(Lapn.collate([sample]))
        assert batch["crops"].shape == (1, 2, 3, *PATCH)
        source = batch["places"][:, 1:] / torch.tensor(volume.spacing)
        assert (batch["places"][:, 0] == 5).all() and 0 < len(source) <= config.points_per_pair
        for k in range(2):
            corners, weights = interpolate_cells(PATCH, (1, 1, 1), batch["points"][:, k])
            _, z, y, x = corners.unbind(-1)
            seen = (batch["crops"][0, k][:, z, y, x] * weights).sum(-1).T
            mapped = to_source(batch["points"][:, k, 1:], batch["starts"][0, k], batch["scales"][0, k])
            torch.testing.assert_close(mapped, source, rtol=0, atol=1e-4)
            # voxels of a patch near the volume's border may look beyond it, where zeros are
            deep = ((source > 1.2) & (source < torch.tensor(size) - 2.2)).all(1)
            compared += int(deep.sum())
            torch.testing.assert_close(seen[deep], source[deep], rtol=0, atol=1e-3)
    assert compared >= (500 if min(size) > 10 else 1)


def test_sample__points_are_in_the_body(tmp_path: Path) -> None:
    size = (30, 40, 36)
    body = np.random.default_rng(0).random(size) < 0.02
    volume = _ramp_volume(tmp_path, size, body)
    counts = []
    for seed in range(10):
        sample = Lapn.sample(volume, lapn_config(), np.random.default_rng(seed))
        nearest = np.rint(sample["places"][:, 1:] / volume.spacing).astype(int)
        assert body[tuple(nearest.T)].all() and sample["points"].dtype == np.float32
        counts.append(len(nearest))
    assert max(counts) < 40 < 2048 * 0.02  # fewer than asked for: all there are


def test_sample__reads_the_volume_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, reads = _ramp_volume(tmp_path, (30, 40, 36)), []
    read = BloscVolume.read

    def counted(self: BloscVolume, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        reads.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(BloscVolume, "read", counted)
    Lapn.sample(volume, lapn_config(), np.random.default_rng(0))
    assert len(reads) == 1


def test_sample__is_a_function_of_the_generator(tmp_path: Path) -> None:
    volume = _ramp_volume(tmp_path, (30, 40, 36))
    one, two, other = (Lapn.sample(volume, lapn_config(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(one["starts"], other["starts"])


def test_collate__joins_the_points_with_their_samples(tmp_path: Path) -> None:
    config = lapn_config(batch_size=3)
    batch = lapn_batch(tmp_path, config)
    assert batch["points"].shape == (120, 2, 4) and batch["places"].shape == (120, 4)
    assert batch["points"][:, 0, 0].tolist() == batch["places"][:, 0].tolist() == np.repeat([0, 1, 2], 40).tolist()
    assert batch["regions"].shape == (3, 2, 1, 10, 19, 19) and batch["volume"].tolist() == [0, 1, 2]
    assert batch["points"].dtype == batch["places"].dtype == torch.float32


@pytest.mark.parametrize("channels", [(CT,), (MR, MR)], ids=["CT", "two MR channels"])
def test_augment__any_channels(tmp_path: Path, channels: tuple[Channel, ...]) -> None:
    volumes = make_folder(tmp_path, channels)
    add_volume(volumes, "a", np.random.default_rng(0).random((len(channels), 20, 24, 24)))
    config = lapn_config(batch_size=1)
    batch = Lapn.collate([Lapn.sample(volumes.open("a"), config, np.random.default_rng(0))])
    before = batch["regions"].clone()
    method = Lapn(small_fpn(len(channels)), config)
    views = method.augment(batch)
    assert views["crops"].shape == (1, 2, len(channels), *PATCH) and "regions" not in views
    assert torch.equal(batch["regions"], before) and torch.equal(views["crops"], method.augment(batch)["crops"])
    assert method(views).loss.isfinite()


@pytest.mark.rendered
def test_panels__show_the_same_anatomy_at_the_same_number(tmp_path: Path) -> None:
    config = lapn_config(points_per_pair=200)
    batch: Batch = Lapn(small_fpn(), config).augment(lapn_batch(tmp_path, config))
    rows = Lapn.panels(batch, config)
    assert len(rows) == 2 and all(len(row) == 2 for row in rows)
    for row in rows:
        assert [p[0] for p in row[0].points] == [p[0] for p in row[1].points] and len(row[0].points) >= 3
        assert all(panel.image.shape == PATCH[1:] for panel in row)
    draw_panels(rows, tmp_path / "views.png", "LAPN")
    assert (tmp_path / "views.png").stat().st_size > 10_000
    nothing = {**batch, "points": batch["points"][:0]}
    assert [len(panel.points) for row in Lapn.panels(nothing, config) for panel in row] == [0] * 4

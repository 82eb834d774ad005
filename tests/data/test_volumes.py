from __future__ import annotations

import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.data import volumes
from nnssl.data.storage import save_body_mask
from nnssl.data.volumes import Channel
from tests.volumes import CT, MR, add_volume, index_volume, make_folder


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (5, 6, 7)), ((2, 3, 1), (11, 17, 13)), ((-3, -2, -5), (4, 4, 4)), ((8, 10, 9), (14, 25, 20)),
     ((-4, -4, -4), (20, 30, 20)), ((30, 0, 0), (34, 4, 4))],
)  # fmt: skip
def test_read__equals_a_padded_array(tmp_path: Path, start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    folder, image = make_folder(tmp_path, (CT, CT)), index_volume((12, 19, 15), 2)
    body = np.random.default_rng(0).random((12, 19, 15)) > 0.5
    add_volume(folder, "a", image, body)
    volume = folder.open("a")
    margin = 40
    padded = np.pad(image, ((0, 0), *[(margin, margin)] * 3))
    box = tuple(slice(margin + a, margin + b) for a, b in zip(start, stop, strict=True))
    every = (slice(None), *box)
    read = volume.read(np.array(start), np.array(stop))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, padded[every])
    np.testing.assert_array_equal(volume.read_body(np.array(start), np.array(stop)), np.pad(body, margin)[box])


def test_read__decompresses_only_what_it_touches(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    image = np.random.default_rng(0).random((1, 64, 16, 16))
    add_volume(folder, "a", image, chunk=(8, 16, 16))
    file = folder.images / "a.b2nd"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) * 6 // 10] = b"\0" * (len(content) * 6 // 10 - len(content) // 2)
    file.write_bytes(content)  # the chunks in the middle of the file are ruined
    volume = folder.open("a")
    first = volume.read(np.array([0, 0, 0]), np.array([8, 16, 16]))
    np.testing.assert_array_equal(first, image[:, :8].astype(np.float32))
    with pytest.raises(RuntimeError):
        volume.read(np.array([0, 0, 0]), np.array([64, 16, 16]))


def test_cases__is_a_listing_of_10_000_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    for i in range(10_000):
        for place in (folder.images, folder.bodies):
            (place / f"case_{i:05}.b2nd").touch()
        (folder.images / f"case_{i:05}_seg.b2nd").touch()
    (folder.images / "unfinished.b2nd").touch()
    monkeypatch.setattr(blosc2, "open", lambda *a, **k: pytest.fail("a volume was opened"))
    cases = folder.cases()
    assert len(cases) == 10_000 and cases[0] == "case_00000"
    assert make_folder(tmp_path, name="Dataset501_Empty").cases() == []


def test_random_body_voxel__is_uniform_over_the_body(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    body = np.zeros((5, 4, 6), dtype=bool)
    body[1, 2, 3] = body[3, :, 2] = body[4, 0, 0] = True
    add_volume(folder, "a", np.zeros((1, 5, 4, 6)), body)
    volume, rng = folder.open("a"), np.random.default_rng(0)
    counts = np.zeros(body.shape)
    for _ in range(3000):
        counts[tuple(volume.random_body_voxel(rng))] += 1
    assert (counts[~body] == 0).all()
    np.testing.assert_allclose(counts[body], 500, atol=100)  # five standard deviations


def test_hu_affine__ct_undoes_the_plans_and_other_channels_use_the_range(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, (Channel("CTNormalization", 60.0, 120.0), MR))
    rng = np.random.default_rng(0)
    add_volume(folder, "a", rng.normal(size=(2, 9, 9, 9)))
    volume = folder.open("a")
    np.testing.assert_array_equal(volume.is_ct, [True, False])
    np.testing.assert_allclose(volume.hu_affine[0], [60, 120])
    low, high = np.percentile(volume.read(np.zeros(3, int), np.array([9, 9, 9]))[1], [0.5, 99.5])
    offset, scale = volume.hu_affine[1]
    np.testing.assert_allclose([offset + scale * low, offset + scale * high], [-1350, 1000], atol=1e-2)


def test_open__a_mask_of_another_shape_names_the_fix(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", np.zeros((1, 4, 4, 4)))
    image = np.zeros((1, 5, 4, 4), dtype=np.float32)
    blosc2.asarray(image, urlpath=str(folder.images / "a.b2nd"), mode="w")
    with pytest.raises(UserError, match="nnssl_plan_and_preprocess"):
        folder.open("a")


def test_body_box__is_stored_or_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = np.zeros((9, 12, 11), dtype=bool)
    body[2:5, 3:4, 6:11] = True
    folder = make_folder(tmp_path)
    add_volume(folder, "old", np.zeros((1, *body.shape)), body)
    for _ in range(2):
        assert [side.tolist() for side in folder.open("old").body_box] == [[2, 3, 6], [5, 4, 11]]
        monkeypatch.setattr(volumes, "bounding_box", None)
    monkeypatch.undo()
    add_volume(folder, "old", np.zeros((1, *body.shape)), body[::-1])
    os.utime(folder.bodies / "old.b2nd", (0, 0))
    assert folder.open("old").body_box.start.tolist() == [4, 3, 6]
    save_body_mask(folder.bodies / "old.b2nd", body, np.zeros((1, *body.shape), dtype=np.float32))
    monkeypatch.setattr(volumes, "bounding_box", None)
    assert [side.tolist() for side in folder.open("old").body_box] == [[2, 3, 6], [5, 4, 11]]

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box
from nnssl.data.resized import origin_of, resized_body, resized_folder
from nnssl.data.storage import body_folder, save_resized
from nnssl.data.volumes import BloscVolume, VolumeFolder
from tests.volumes import CT, MR, Channel, add_volume, make_folder

LARGEST = (6, 20, 64)
BOX = Box(np.array([2, 3, 5]), np.array([19, 36, 40]))


def _volume(root: Path, channels: tuple[Channel, ...] = (CT, MR)) -> tuple[VolumeFolder, np.ndarray]:
    folder, size = make_folder(root, channels), (20, 37, 44)
    body = np.zeros(size, dtype=bool)
    body[tuple(BOX.start)] = body[tuple(BOX.stop - 1)] = True
    image = np.random.default_rng(0).normal(size=(len(channels), *size)).astype(np.float32)
    add_volume(folder, "a", image, body)
    return folder, image


def _file(folder: VolumeFolder) -> Path:
    return body_folder(resized_folder(folder.images, LARGEST)) / "a.b2nd"


def _store(volume: BloscVolume, values: np.ndarray | None = None, **changes: Any) -> None:
    body = resized_body(volume, LARGEST)
    header = {"origin": {**origin_of(volume, body.box), **changes}}
    save_resized(
        resized_folder(volume.folder.images, LARGEST), volume.case, body.values if values is None else values, header
    )


@pytest.mark.parametrize("stored", [True, False])
def test_read_resized_body__is_the_resized_read_of_the_volume_to_half_precision(tmp_path: Path, stored: bool) -> None:
    folder, image = _volume(tmp_path)
    if stored:
        _store(folder.open("a"))
    inside = torch.from_numpy(image[:, 2:19, 3:36, 5:40])
    expected = F.interpolate(inside[None], (6, 20, 35), mode="trilinear", align_corners=True)[0]  # x stays as it is
    values = folder.open("a").read_resized_body(LARGEST)
    assert values.dtype == np.float16 and values.shape == (2, 6, 20, 35) and _file(folder).is_file() == stored
    np.testing.assert_allclose(values, expected.numpy(), rtol=2**-11, atol=1e-7)
    np.testing.assert_array_equal(values[:, [0, -1], 0, 0], expected[:, [0, -1], 0, 0].half())
    corner = image[:, 2, 3, 5]
    np.testing.assert_allclose(values[:, 0, 0, 0], corner, rtol=2**-11)


def test_read_resized_body__smaller_bodies_are_not_enlarged(tmp_path: Path) -> None:
    folder, image = make_folder(tmp_path), np.random.default_rng(0).normal(size=(1, 3, 1, 7))
    add_volume(folder, "a", image)
    values = folder.open("a").read_resized_body((96, 384, 384))
    np.testing.assert_array_equal(values, image.astype(np.float32).astype(np.float16))


def test_read_resized_body__takes_the_stored_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = _volume(tmp_path)
    _store(folder.open("a"))
    expected = folder.open("a").read_resized_body(LARGEST)
    monkeypatch.setattr(BloscVolume, "read", None)
    monkeypatch.setattr(BloscVolume, "read_body", None)
    np.testing.assert_array_equal(folder.open("a").read_resized_body(LARGEST), expected)


@pytest.mark.parametrize(
    "change",
    [{"values": np.zeros((2, 6, 20, 35), dtype=np.float32)}, {"values": np.zeros((2, 6, 20, 34), dtype=np.float16)},
     {"values": np.zeros((1, 6, 20, 35), dtype=np.float16)}, {"stop": [19, 36, 45]}, {"start": [2, 3]},
     {"image_bytes": 1}, {"mask_bytes": 1}, {"size": [20, 37, 45]}],
    ids=["type", "size", "channels", "box beyond the volume", "box of two axes", "image", "mask", "volume"],
)  # fmt: skip
def test_read_resized_body__refuses_what_does_not_fit_the_volume(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, _ = _volume(tmp_path)
    _store(folder.open("a"), **change)
    with pytest.raises(UserError, match=rf"{_file(folder)}.*delete it"):
        folder.open("a").read_resized_body(LARGEST)


@pytest.mark.parametrize("damage", ["no header", "rubbish", "empty"])
def test_read_resized_body__refuses_a_damaged_file(tmp_path: Path, damage: str) -> None:
    folder, _ = _volume(tmp_path)
    file = _file(folder)
    file.parent.mkdir()
    if damage == "no header":
        blosc2.asarray(np.zeros((2, 6, 20, 35), dtype=np.float16), urlpath=str(file))
    else:
        file.write_bytes(b"" if damage == "empty" else b"rubbish" * 100)
    with pytest.raises(UserError, match=rf"{file} cannot be read.*delete it"):
        folder.open("a").read_resized_body(LARGEST)


@pytest.mark.parametrize("value", [70_000.0, np.nan])
def test_resized_body__refuses_values_beyond_half_precision(tmp_path: Path, value: float) -> None:
    folder, image = make_folder(tmp_path), np.zeros((1, 4, 4, 4))
    image[0, 1, 2, 3] = value
    add_volume(folder, "a", image)
    with pytest.raises(UserError, match=r"Dataset500_Test/a.*body_size=none"):
        resized_body(folder.open("a"), LARGEST)

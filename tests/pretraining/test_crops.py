from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.core.geometry import Box
from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.methods.registry import get_method
from nnssl.pretraining import crops
from nnssl.pretraining.crops import crop_warning, outside_part, shared_part

SIZE = np.array([35, 51, 36])


def test_shared_part__is_the_count_of_common_voxels() -> None:
    """Against volumes of indices; a crop that begins before the volume shows less of it."""
    size = np.array([9, 7, 8])
    boxes = np.array([[[0, 0, 0], [5, 4, 4]], [[2, 1, 3], [7, 5, 7]], [[-2, 3, 4], [3, 7, 8]]], dtype=float)
    masks = np.zeros((3, *size), dtype=bool)
    for mask, (first, stop) in zip(masks, boxes.astype(int), strict=True):
        mask[tuple(slice(max(f, 0), s) for f, s in zip(first, stop, strict=True))] = True
    expected = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        common = (masks[i] & masks[j]).sum()
        expected.append((common / masks[i].sum() + common / masks[j].sum()) / 2)
    np.testing.assert_allclose(shared_part(boxes, size), expected)
    assert expected[0] > 0 and expected[2] > 0


class _Folder:
    """Volumes of one size whose voxels cannot be read."""

    def __init__(self, size: np.ndarray) -> None:
        self.size, self.name = size, "Dataset001_A"

    def open(self, case: str, index: int = 0) -> Any:
        if case == "damaged":
            raise UserError("damaged")
        channel = np.array([[0.0, 1.0]]), np.array([True])
        return SimpleNamespace(index=index, spacing=(1.0, 1.0, 1.0), size=self.size, hu_affine=channel[0],
                               is_ct=channel[1], random_body_voxel=lambda rng: rng.integers(self.size),
                               body_box=Box(np.zeros(3, dtype=int), self.size))  # fmt: skip


def _setup(method: str, patch: tuple[int, int, int], size: np.ndarray = SIZE, **options: Any) -> Any:
    config = get_method(method).config_class(patch_size=patch, batch_size=2, **options)
    backbone = SimpleNamespace(divisor=(8, 8, 8), check_patch=lambda *_: None, mask_unit=(8, 8, 8),
                               encodes_blocks=False, channels=(1, 2, 4),
                               strides=((1, 1, 1), (2, 2, 2), (4, 4, 4)))  # fmt: skip
    train = Cases((_Folder(size),), np.zeros(2, dtype=int), np.array(["damaged", "whole"]))  # type: ignore[arg-type]
    built = SimpleNamespace(backbone=backbone)
    return SimpleNamespace(method=method, config=config, train=train, build_method=lambda: built)


@pytest.mark.parametrize("method", ["vox2vec", "lapn", "sam", "simclr", "pimpic"])
def test_crop_warning__names_a_patch_that_fits_the_volumes(method: str) -> None:
    said = crop_warning(_setup(method, (32, 48, 32)))
    assert said is not None
    assert "32x48x32" in said and "35x51x36" in said and "-o patch_size=16,24,16" in said
    mean, smaller = (float(part.split()[0].rstrip(":;")) for part in said.split(" by ")[1:])
    assert 0.75 < mean <= 1 and smaller < 0.7


@pytest.mark.parametrize("method", ["vox2vec", "lapn", "sam", "simclr", "pimpic"])
def test_crop_warning__none_for_volumes_of_a_ct(method: str) -> None:
    assert crop_warning(_setup(method, (64, 64, 64), np.array([150, 300, 300]))) is None


@pytest.mark.parametrize(("method", "options"), [("mae", {}), ("simclr", {"variant": "intra_scan"})])
def test_crop_warning__none_where_no_crops_are_compared(method: str, options: dict[str, Any]) -> None:
    assert crop_warning(_setup(method, (32, 48, 32), **options)) is None


def test_crop_warning__where_no_smaller_patch_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    said = crop_warning(_setup("vox2vec", (8, 8, 8), np.array([9, 8, 8])))
    assert said is not None and "-o patch_size" not in said and "-m mae" in said
    monkeypatch.setattr(crops, "MOST_OVERLAP", 0.99)
    assert crop_warning(_setup("vox2vec", (8, 8, 8), np.array([9, 8, 8]))) is None


def test_outside_part__is_the_share_of_padding() -> None:
    boxes = np.array([[[-2, 0, 0], [8, 4, 4]], [[0, 0, 0], [4, 4, 4]], [[1, 2, 3], [5, 6, 7]]], dtype=float)
    np.testing.assert_allclose(outside_part(boxes, np.array([6, 4, 5])), [0.4, 0, 1 - 4 * 2 * 2 / 64])


@pytest.mark.parametrize("method", ["mae", "volumefusion"])
def test_crop_warning__of_a_patch_that_is_mostly_padding(method: str) -> None:
    said = crop_warning(_setup(method, (64, 96, 64)))
    assert said is not None and "-o patch_size=32,48,32 it is 0.0" in said
    share = 1 - 35 * 51 * 36 / (64 * 96 * 64)
    assert float(said.split()[0]) == pytest.approx(share, abs=0.006) and "limit 0.5" in said
    assert f"{share:.2f} of a crop" in str(crop_warning(_setup("alice", (64, 96, 64))))
    assert crop_warning(_setup(method, (40, 56, 40))) is None, "nnU-Net's own patch for these volumes"


@pytest.mark.parametrize(("grid", "warned"), [((1, 1, 3), True), ((1, 3, 3), False)])
def test_crop_warning__of_a_grid_along_one_axis(grid: tuple[int, int, int], warned: bool) -> None:
    said = crop_warning(_setup("voco", (16, 16, 16), grid=grid))
    assert (said is not None) is warned
    assert said is None or ("nearest base" in said and "-o grid=1,4,4" in said and " 0.7" in said)


_OF_PRESET = {"alice_12gb": "alice mae", "alice_nnformer": "alice mae", "alice_swin": "alice mae",
              "alice_vit": "alice mae", "primus": "mae unet_mae", "tiny": "vox2vec pimpic simclr"}  # fmt: skip
_NAMES = [name.removeprefix("nnsslPlans_") for name in presets() if not name.startswith("nnsslPlans_lapn_")]
_PAIRS = [(f"nnsslPlans_{name}", method) for name in _NAMES for method in _OF_PRESET.get(name, name).split()]


@pytest.mark.parametrize(("preset", "method"), _PAIRS)
def test_crop_warning__none_for_presets_on_ct(preset: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the papers' patches and batches, in an abdomen of 250 x 350 x 350 mm."""
    monkeypatch.setattr(crops, "_DRAWS", 12)
    plans = json.loads(presets()[preset].read_text())["configurations"]["3d_fullres"]
    size = np.array((250, 350, 350)) // np.array(plans["spacing"] or (2.5, 0.8, 0.8))
    assert crop_warning(_setup(method, tuple(plans["patch_size"]), size.astype(int))) is None


def test_crop_boxes__of_both_crops_also_when_scaled() -> None:
    lapn = get_method("lapn")
    batch = {"starts": torch.tensor([[[0, 1, 2], [3, 4, 5]]]), "scales": torch.tensor([[1.0, 1.5]])}
    boxes = lapn.crop_boxes(batch, lapn.config_class(patch_size=(4, 4, 8)))
    assert boxes is not None
    assert boxes[0].tolist() == [[[0, 1, 2], [4, 5, 10]], [[3, 4, 5], [9, 10, 17]]]

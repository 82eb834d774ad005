from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.presets import presets
from nnssl.networks.build import resolve_configuration
from nnssl.networks.fpn_unet import FPN3d
from tests.interchange.files import assert_same_maps, imported, randomised, saved

REFERENCE = Path(__file__).parents[1] / "reference" / "state_dict_shapes.json"


def test_vox2vec__names_and_shapes_are_the_published_ones() -> None:
    published = json.loads(REFERENCE.read_text())["vox2vec.FPN3d(1,16,6)"]
    with torch.device("meta"):
        network = FPN3d(1, 16, 6)
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == published


def test_vox2vec__the_imported_network_gives_the_same_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = randomised(FPN3d(1, 4, 3))
    run = imported(saved(source.state_dict(), tmp_path / "anything"), tmp_path, monkeypatch)
    assert run.about["tensors_mapped"] == len(source.state_dict()) and run.about["tensors_left"] == 0
    assert run.about["licence"] == "MIT" and run.about["axes"] == "xyz"
    assert_same_maps(run.folder, source, (9, 16, 12), axes="xyz")


def test_vox2vec__plans_are_those_of_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = imported(saved(FPN3d(1, 4, 3).state_dict(), tmp_path / "v"), tmp_path, monkeypatch)
    preset = json.loads(presets()["nnsslPlans_vox2vec"].read_text())
    plans = json.loads((run.folder / "plans.json").read_text())
    own, theirs = (resolve_configuration(p, "3d_fullres") for p in (plans, preset))
    of_dataset = ("architecture", "median_image_size_in_voxels")
    assert {k: v for k, v in own.items() if k not in of_dataset} == {
        k: v for k, v in theirs.items() if k not in of_dataset
    }
    key = "foreground_intensity_properties_per_channel"
    assert plans[key] == preset[key]


def test_vox2vec__half_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = FPN3d(1, 4, 3).state_dict()
    del state["up_blocks.0.0.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors.*up_blocks.0.0.weight"):
        imported(saved(state, tmp_path / "half.pt"), tmp_path, monkeypatch)
    assert not list((tmp_path / "results").rglob("*.pth"))

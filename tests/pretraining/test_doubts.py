"""What is said of a run before its first step, and of none that is as it should be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnssl.data.loader import Cases
from nnssl.methods.registry import get_method, method_names
from nnssl.pretraining.doubts import copies_warning, doubts, held_out_warning, probe_warnings, warmup_warning
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.setup import Setup
from tests.runs import make_setup
from tests.volumes import make_folder


def _copy(setup: Setup, case: str, new: str) -> None:
    folder = setup.train.folders[0]
    for home in (folder.images, folder.bodies):
        shutil.copy(home / f"{case}.b2nd", home / f"{new}.b2nd")


def _with(setup: Setup, train: list[str], val: list[str]) -> Setup:
    folders = list(setup.train.folders)
    return replace(setup, train=Cases.of(folders, [train]), val=Cases.of(folders, [val]))


def test_doubts__none_of_a_run_as_it_should_be(tmp_path: Path) -> None:
    assert doubts(make_setup(tmp_path, volumes=8, held_out=2)) == []


@pytest.mark.parametrize("method", method_names())
def test_warmup_warning__none_for_the_defaults(method: str) -> None:
    assert warmup_warning(get_method(method).config_class()) is None


@pytest.mark.parametrize(("options", "highest"), [
    ({"num_epochs": 1, "steps_per_epoch": 320}, "5.1e-06 of 5.0e-05"),
    ({"num_epochs": 5, "steps_per_epoch": 1000}, "5.0e-05 of 5.0e-05"),
])  # fmt: skip
def test_warmup_warning__says_which_rate_is_reached(options: dict[str, Any], highest: str) -> None:
    said = warmup_warning(get_method("mae").config_class(**options))
    steps = options["num_epochs"] * options["steps_per_epoch"]
    assert said is not None and f"3,100 steps takes more than half of the {steps:,}" in said and highest in said
    assert warmup_warning(get_method("mae").config_class(**options, warmup_steps=steps // 10)) is None
    assert f"-o warmup_steps={steps // 10} " in said


def test_held_out_warning__of_a_single_volume(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    said = held_out_warning(setup)
    assert said is not None and "1 volume is held out (Dataset500_Test/case_5;" in said and "-probe" in said
    (setup.train.folders[0].images.parent / "splits_final.json").touch()
    assert "-f 0 holds" in str(held_out_warning(setup))
    assert held_out_warning(replace(setup, config=replace(setup.config, val_steps_per_epoch=0))) is None


def test_copies_warning__of_one_scan_under_two_names(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    assert copies_warning(setup) is None
    _copy(setup, "case_1", "case_9")
    said = str(copies_warning(_with(setup, ["case_0", "case_1", "case_9"], ["case_2"])))
    assert "case_1 and Dataset500_Test/case_9 are the same scan: a contrastive" in said
    said = str(copies_warning(_with(setup, ["case_0", "case_1"], ["case_2", "case_9"])))
    assert "the first is training and the second held-out" in said
    _copy(setup, "case_1", "case_8")
    assert "(3 such pairs)" in str(copies_warning(_with(setup, ["case_1", "case_8", "case_9"], [])))


@pytest.mark.parametrize(("spacing", "warned"), [([5.0, 1.0, 1.0], True), ([3.0, 1.0, 1.0], False)])
def test_probe_warnings__of_longer_voxels(tmp_path: Path, spacing: list[float], warned: bool) -> None:
    setup = make_setup(tmp_path)
    folder = make_folder(tmp_path / "preprocessed", name="Dataset017_Probe")
    probe = ProbeData(folder, ("a",), ("b",), {"organ": (1,)})
    content = {"spacings": [spacing] * 3, "shapes_after_crop": [[4, 4, 4]] * 3,
               "median_relative_size_after_cropping": 1.0,
               "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(
                   ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)}}  # fmt: skip
    (folder.images.parent / "dataset_fingerprint.json").write_text(json.dumps(content))
    said = probe_warnings(replace(setup, probe=probe))
    assert bool(said) is warned
    assert not said or ("the probe Dataset017_Probe (5 x 1 x 1 mm)" in said[0] and "2 x 1 x 1 mm" in said[0])

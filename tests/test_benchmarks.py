"""`benchmarks/gpu.py` on a CPU at toy sizes, as on a machine without nnU-Net."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.methods.base import MethodConfig
from nnssl.methods.pimpic.method import PimpicConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MISSING = ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils", "SimpleITK", "sklearn", "nibabel",
           "pandas", "skimage", "monai")  # fmt: skip
WITHOUT = f"""
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {MISSING!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv[0] = "gpu.py"
runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""


@dataclass(frozen=True)
class Run:
    """What stands for a `Setup`."""

    config: MethodConfig


@dataclass(frozen=True)
class Found:
    """What stands for a `StepResult`."""

    config: MethodConfig
    out_of_memory: tuple[str, ...] = ()


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu_step")


def test_gpu__measures_what_is_installed_and_names_what_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = str(BENCHMARKS.parent)
    arguments = ["-device", "cpu", "-small", "-only", "vox2vec", "sam", "lapn", "-o", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu_cpu_small.json").read_text())
    assert [(s["method"], s["layout"]) for s in found["steps"]] == [
        ("vox2vec", "package"), ("sam", "package"), ("vox2vec", "contiguous"), ("vox2vec", "channels_last"),
        ("sam", "contiguous"),
    ]  # fmt: skip
    for measured in found["steps"]:
        assert set(measured["parts"]) == {"augmentation", "forward", "backward", "optimiser"}
        assert min(measured["parts"].values()) > 0
        assert measured["samples_per_second"] == pytest.approx(measured["batch"] / measured["step"])
        assert measured["flop"] > 1e8
    (note,) = found["notes"]
    assert note.startswith("step of lapn: ") and "pip install" in note and "monai" in note
    rows = found["run"]["rows"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["probe_linear_dice"] <= 1 and row["samples_per_second"] > 0 for row in rows)
    assert (tmp_path / "gpu_cpu_small.txt").read_text() == done.stdout
    assert "vox2vec through the loop: 2 epochs of 3 steps" in done.stdout


def test_measure_what_fits__halves_the_batch_and_then_the_crops(step: Any) -> None:
    def run(setup: Run) -> Found:
        config = setup.config
        assert isinstance(config, PimpicConfig)
        if int(config.batch_size or 0) * config.crops > 8:
            raise torch.cuda.OutOfMemoryError("full")
        return Found(config)

    found = step.measure_what_fits(Run(PimpicConfig(batch_size=2)), run, torch.device("cpu"))
    assert found == Found(PimpicConfig(batch_size=1, crops=8), ("2 x 32", "1 x 32", "1 x 16"))


def test_measure_what_fits__says_what_was_tried_where_nothing_fits(step: Any) -> None:
    def run(setup: Run) -> Found:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(UserError, match=r"out of memory with 2 x 1 and 1 x 1 \(volumes x crops\)"):
        step.measure_what_fits(Run(MethodConfig(batch_size=2)), run, torch.device("cpu"))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_forced_layout__reaches_all_maps(step: Any, layout: str) -> None:
    from nnssl.networks.fpn_unet import FPN3d
    from nnssl.networks.pimpic_unet import Pimpic3d

    wanted = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    for network in (FPN3d(base_channels=4, num_scales=3), Pimpic3d(base_channels=4)):
        with step.forced_layout(layout):
            maps = step._in_layout(network, layout)(torch.rand(2, 1, 32, 32, 32))
        assert all(m.is_contiguous(memory_format=wanted) for m in maps if m[0, 0].numel() > 1)


def test_methods__have_their_papers_batch_and_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    setups = import_module("gpu_setups")
    sizes = {}
    for method in setups.PRESETS:
        config = setups.config_of(method, setups.plans_of(method, False), False)
        sizes[method] = (config.batch_size, config.patch_size)
        assert setups.smaller(replace(config, batch_size=2)).batch_size == 1
    assert sizes == {
        "vox2vec": (10, (32, 128, 128)),
        "voco": (2, (64, 64, 64)),
        "pimpic": (1, (64, 64, 64)),
        "lapn": (1, (192, 192, 192)),
        "sam": (3, (32, 96, 96)),
        "mae": (8, (64, 192, 192)),
        "alice": (8, (64, 192, 192)),
    }

"""`benchmarks/gpu.py` on a CPU at toy sizes, as on a machine without nnU-Net."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import nnssl
from nnssl.core.errors import UserError
from nnssl.methods.base import MethodConfig
from nnssl.methods.pimpic.method import PimpicConfig
from nnssl.methods.registry import method_names

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
calls, ended = sys.argv[1].split("|"), []
for call in calls:  # one after the other in one process, since the libraries take seconds to load
    sys.argv[:] = ["gpu.py", *call.split()]
    try:
        runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
    except SystemExit as done:
        ended.append(done.code)
sys.exit(max(ended))
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


@pytest.mark.slow
def test_gpu__measures_what_is_installed_and_names_what_is_not(tmp_path: Path) -> None:
    environment = {**os.environ, "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = str(BENCHMARKS.parent)
    every = f"-device cpu -small -o {tmp_path}"
    calls = (f"{every} -only vox2vec -m none -variants|"
             f"{every} -only vox2vec sam lapn -variants contiguous channels_last fused")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", WITHOUT, calls], cwd=tmp_path, env=environment, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("step of vox2vec (") == 1, "the second call goes on"
    found = json.loads((tmp_path / "gpu_cpu_small.json").read_text())
    assert [(s["method"], s["variant"]) for s in found["steps"]] == [
        ("vox2vec", "package"), ("sam", "package"), ("vox2vec", "contiguous"), ("vox2vec", "channels_last"),
        ("vox2vec", "fused"),
        ("sam", "channels_last"), ("sam", "fused"),
    ]  # fmt: skip
    for measured in found["steps"]:
        assert set(measured["parts"]) == {"augmentation", "forward", "backward", "optimiser"}
        assert min(measured["parts"].values()) > 0
        assert measured["samples_per_second"] == pytest.approx(measured["batch"] / measured["step"])
        assert measured["flop"] > 1e8
        assert (measured["rehearsed"] or 0) * 2**30 > (1e6 if measured["variant"] == "package" else -1)
    assert found["notes"].keys() == {"step of lapn"}
    assert "pip install" in found["notes"]["step of lapn"] and "monai" in found["notes"]["step of lapn"]
    assert found["runs"].keys() == {"vox2vec", "sam"} and found["formulas"].keys() == {"vox2vec", "sam", "lapn"}
    assert all(0 <= run["after_the_first"]["data_wait"] <= 1 for run in found["runs"].values())
    run = found["runs"]["vox2vec"]
    assert [row["epoch"] for row in run["rows"]] == [1, 2] and run["waits"] is None
    assert all(0 <= row["probe_linear_dice"] <= 1 and row["samples_per_second"] > 0 for row in run["rows"])
    assert 0 <= run["untrained"]["probe_linear_dice"] <= 1
    assert done.stdout.endswith((tmp_path / "gpu_cpu_small.txt").read_text())
    assert "vox2vec through the loop: 2 epochs of 3 steps" in done.stdout and "not on a card" in done.stdout


def test_report__figures_of_another_version_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = import_module("gpu_report").Report
    machine = {"device": "A card", "torch": "2.8"}
    report(machine, 1e12, tmp_path, False, notes={"step of mae": "no time"}).write()
    later = report(machine, 2e12, tmp_path, False)
    later.resume()
    assert later.notes == {"step of mae": "no time"} and later.matrix_product == 2e12
    later.runs.update(mae={}, sam={})
    later.forget("mae")
    assert later.runs == {"sam": {}}
    with pytest.raises(UserError, match=r"gpu_A_card\.json .* another torch \(2\.8, now 2\.9\)"):
        report({**machine, "torch": "2.9"}, 1e12, tmp_path, False).resume()


def test_measure_all__keeps_what_there_is_no_time_to_measure_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    forgotten: list[str] = []
    report = SimpleNamespace(step=lambda method: None, forget=forgotten.append, runs={}, formulas={})
    for left in (0.0, 1.0):
        benchmark = SimpleNamespace(report=report, left=left, part=lambda *arguments: None, step=str, formula=str)
        import_module("gpu").measure_all(benchmark, ["mae", "sam"], None, 1.0, [], ["mae"])
        assert forgotten == ["mae"] * int(left)


@pytest.mark.parametrize("method", method_names())
def test_formula__ours_and_the_plain_one_agree(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rows = import_module("gpu_plain").compare(method, torch.device("cpu"), 0.0, True)["rows"]
    ours, plain, half = (row["value"] for row in rows)
    assert ours == pytest.approx(plain, rel=1e-5) and half == pytest.approx(plain, rel=0.02)
    assert all(row["seconds"] > 0 and row["memory"] is None for row in rows)


def test_counted_waits__by_line_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("gpu_waits")
    line = "import warnings\nfor _ in range(2): warnings.warn('called a synchronizing CUDA operation (Triggered)')"
    file = str(Path(nnssl.__file__).parent / "methods" / "some.py")
    with module.counted_waits(torch.device("cpu")) as found:
        exec(compile(line, file, "exec"))
        warnings.warn("something else", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert found == {"methods/some.py:2": 2, "elsewhere": 1}


def test_prepare__compiles_the_networks_alone_and_chooses_the_optimisers_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("gpu_variants")
    from nnssl.networks.fpn_unet import FPN3d

    compiled: list[nn.Module] = []
    monkeypatch.setattr(FPN3d, "compile", lambda self: compiled.append(self))
    network = FPN3d(base_channels=4, num_scales=3)
    for variant in ("package", "fused", "compiled"):
        module.prepare(nn.Sequential(network), variant)
    assert compiled == [network]
    for variant, fused in (("fused", True), ("unfused", False), ("package", None)):
        optimiser = module.choose_kernel(torch.optim.AdamW(network.parameters()), variant)
        assert optimiser.param_groups[0]["fused"] is fused


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
            maps = step.prepare(network, layout)(torch.rand(2, 1, 32, 32, 32))
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
        "simclr": (8, (64, 64, 64)),
        "unet_mae": (8, (160, 160, 160)),
        "volumefusion": (8, (160, 160, 160)),
    }

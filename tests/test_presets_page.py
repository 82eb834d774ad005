"""docs/presets.md against the script that writes it, and the job script of docs/clusters.md with a pretended Slurm."""

from __future__ import annotations

import os
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nnssl.data.presets import presets

ROOT = Path(__file__).parent.parent


def stored() -> list[tuple[str, ...]]:
    """Rows of the table."""
    lines = (ROOT / "docs" / "presets.md").read_text().splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| `")]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("presets")


def test_page__hours_and_cores_follow_from_the_rehearsed_figures(script: Any) -> None:
    rows = stored()
    assert rows
    for row in rows:
        preset, method, volumes, gib, recomputed, tflop, steps = row[:7]
        name = preset.strip("`")
        assert name in presets() and method in script.METHODS[name.removeprefix("nnsslPlans_")]
        line = script.Line(name.removeprefix("nnsslPlans_"), method, int(volumes), float(gib), float(recomputed),
                           float(tflop), int(steps.replace(",", "")))  # fmt: skip
        assert float(row[7]) == pytest.approx(line.steps * line.seconds / 3600, abs=0.011, rel=0.01)
        assert line.cells[:7] == row[:7] and line.recomputed_gib <= line.gib


@pytest.mark.slow
def test_page__a_line_is_that_of_a_rehearsal(script: Any) -> None:
    row = next(row for row in stored() if row[1] == "sam")
    line = script.line_of("sam", "sam")
    for value, cell in ((line.gib, 3), (line.recomputed_gib, 4), (line.tflop, 5)):
        assert float(row[cell]) == pytest.approx(value, rel=0.05, abs=0.06)


@pytest.mark.parametrize(("code", "queued"), [(75, True), (0, False), (1, False)])
def test_job_script__is_queued_again_after_a_saved_interruption_only(tmp_path: Path, code: int, queued: bool) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    job = tmp_path / "pretrain.sbatch"
    job.write_text(page.split("```bash\n")[1].split("```")[0])
    for name, line in {"srun": f'echo "$@" > {tmp_path}/ran; exit {code}', "scontrol": f'echo "$@" > {tmp_path}/said'
                       }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    ended = subprocess.run(["bash", str(job), "-d", "500", "-m", "mae"], env=environment, timeout=60, check=False)
    assert ended.returncode == code
    assert (tmp_path / "ran").read_text() == "nnssl_pretrain -d 500 -m mae --c\n"
    assert (tmp_path / "said").exists() == queued
    assert "--signal=USR1@300" in job.read_text()
    if queued:
        assert (tmp_path / "said").read_text() == "requeue 7\n"

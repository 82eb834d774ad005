from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.cli.plan_and_preprocess import main
from tests.phantoms import write_ct_dataset

ROOT = Path(__file__).parents[2]


def _environment(tmp_path: Path) -> dict[str, str]:
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    return {**os.environ, **folders, "PYTHONPATH": str(ROOT), "nnUNet_n_proc_DA": "1"}


def test_main__as_a_command(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    folder = write_ct_dataset(tmp_path / "nnUNet_raw", 1, "X", 2)
    (folder / "imagesTr" / "bad_0000.nii.gz").write_bytes(b"no image")
    line = [sys.executable, "-m", "nnssl.cli.plan_and_preprocess", "-d", "1", "-p", "nnsslPlans_tiny", "-np", "1"]
    done = subprocess.run(line, env=environment, text=True, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 3, done.stderr
    assert "warning: left out: bad: unreadable image" in done.stdout
    assert "2 volumes ready" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "nnUNet_preprocessed" / "Dataset001_X" / "nnsslPlans_tiny_left_out.json").is_file()


def test_main__mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    write_ct_dataset(tmp_path / "nnUNet_raw", 1, "X", 2)
    lines = {
        "-d 2": "no dataset 2",
        "-d 1 -pl Nonsense": "no planner Nonsense",
        "-d 1 -num_parts 2 -part_id 1": "--no_pp",
        "-d 1 -p nnsslPlans_tiny -gpu_memory_target 8": "give one or the other",
    }
    for line, message in lines.items():
        with pytest.raises(SystemExit) as caught:
            main(line.split())
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
        assert error.count("\n") == 1
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(SystemExit):
        main(["-d", "1"])
    assert "export nnUNet_raw=" in capsys.readouterr().err

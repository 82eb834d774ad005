from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnssl.cli.embed import main
from tests.phantoms import write_ct_dataset
from tests.pretrainings import tiny_plans, write_pretraining


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    run = write_pretraining(tmp_path / "results", tiny_plans(patch_size=[16, 32, 32]), method="sam").parent
    write_ct_dataset(tmp_path / "raw", 17, "Torso", 2)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return ["-m", str(run), "-i", "17", "-o", str(tmp_path / "out"), "-device", "cpu"]


def test_main__vectors_of_a_dataset(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments, "-format", "csv"])
    assert capsys.readouterr().out.splitlines()[-1] == f"2 cases in {tmp_path / 'out'}"
    with np.load(tmp_path / "out/vectors.npz") as table:
        assert table["cases"].tolist() == ["case_000", "case_001"] and table["vectors"].shape == (2, 112)
    header, *rows = (tmp_path / "out/vectors.csv").read_text().splitlines()
    assert header.startswith("case,level0_0,level0_1,") and len(rows) == 2


def test_main__dense_maps_for_a_viewer_and_a_volume_that_is_left_out(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw/Dataset017_Torso/imagesTs").mkdir()
    (tmp_path / "raw/Dataset017_Torso/imagesTs/bad_0000.nii.gz").touch()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-what", "dense", "-components", "3", "-format", "nifti"])
    assert stopped.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"2 cases in {tmp_path / 'out'} (1 left out)"
    assert any(line.startswith("warning: bad is left out: unreadable image") for line in lines)
    names = {"case_000.nii.gz", "case_001.nii.gz", "embedding.json", "pca.npz"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_main__a_mistake_is_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-format", "nifti"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: -what case is written as npz or csv") and error.count("\n") == 1


def test_parser__help_needs_no_torch() -> None:
    code = ("import sys\nfrom nnssl.cli.embed import main\n"
            "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
            "sys.exit(len({'torch', 'nnunetv2', 'numpy'} & sys.modules.keys()))")  # fmt: skip
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "-components" in shown.stdout

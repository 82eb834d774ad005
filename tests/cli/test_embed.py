from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from nnssl.cli import visualize
from nnssl.cli.embed import main
from tests.phantoms import write_ct_dataset, write_volume
from tests.pretrainings import tiny_plans, write_pretraining


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    run = write_pretraining(tmp_path / "results", tiny_plans(patch_size=[16, 32, 32]), method="sam").parent
    write_ct_dataset(tmp_path / "raw", 17, "Torso", 2)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return ["-m", str(run), "-i", "17", "-o", str(tmp_path / "out"), "-device", "cpu"]


def test_main__vectors_of_a_dataset(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*arguments, "-format", "csv"])
    done, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert done == f"2 cases in {tmp_path / 'out'}"
    drawn = visualize.parser().parse_args(shlex.split(line)[1:])
    assert (drawn.kind, drawn.model, drawn.level) == ("similarity", arguments[1], None)
    assert drawn.image == str(tmp_path / "raw/Dataset017_Torso/imagesTr/case_000_0000.nii.gz")
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
        main([*arguments, "-what", "dense", "-components", "3", "-format", "nifti", "-level", "1"])
    assert stopped.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == [f"2 cases in {tmp_path / 'out'} (1 left out)", "next:"]
    drawn = visualize.parser().parse_args(shlex.split(lines[-1])[1:])
    assert (drawn.kind, drawn.level, Path(drawn.image).is_file()) == ("pca", 1, True)
    assert any(line.startswith("warning: bad is left out: unreadable image") for line in lines)
    names = {"case_000.nii.gz", "case_001.nii.gz", "embedding.json", "pca.npz"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_main__images_of_another_modality(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "raw/Dataset017_Torso/dataset.json"
    file.write_text(file.read_text().replace('"CT"', '"T1"'))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "MR (T1)" in error and "--allow_other_intensities" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()
    main([*arguments, "--allow_other_intensities"])
    assert capsys.readouterr().out.count("MR (T1)") == 1


def test_main__other_orientations_and_coarse_voxels_are_warned_of_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = np.full((12, 40, 40), 40, np.int16)
    volume[5:] = 100
    for i in range(12):
        file = tmp_path / f"others/other_{i:02d}_0000.nii.gz"
        write_volume(file, volume, (7.0, 1.5, 1.5), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    arguments[3] = str(tmp_path / "others")
    main(arguments)
    modality, coarse, oriented = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:"))
    assert str(tmp_path / "others") in modality and "CT" in modality
    assert "other_00 (7 x 1.5 x 1.5 mm)" in coarse and "(12 of 12)" in coarse
    assert "other_09 (RAS), ... (12 of 12)" in oriented and "other_10" not in oriented


def test_main__a_mistake_is_one_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-format", "nifti"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: -what case is written as npz or csv") and error.count("\n") == 1

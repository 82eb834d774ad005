from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.cli.efficiency import main
from nnssl.core.errors import UserError
from nnssl.deployment import efficiency
from nnssl.deployment.efficiency import COLUMNS, CaseCost, measure_efficiency
from nnssl.deployment.export import export_onnx
from tests.deployment.models import write_images, write_model


def test_row__has_flares_tolerances() -> None:
    assert CaseCost("a", (512, 512, 55), 15.0, 3.25, 4096.0, 30000.4).row == (
        "a", "512x512x55", "15.00", "3.25", "4096", "30000", "yes", "yes"
    )  # fmt: skip
    assert CaseCost("a", (1, 1, 1), 15.1, 3.0, 4097.0, 1.0).row[-2:] == ("no", "no")


def test_measure_efficiency__every_case_in_a_process_of_its_own(tmp_path: Path) -> None:
    images, folder = write_images(tmp_path / "images"), write_model(tmp_path / "model")
    export_onnx(folder, tmp_path / "student.onnx")
    for model in (folder, tmp_path / "student.onnx"):
        reported: list[CaseCost] = []
        costs = measure_efficiency(model, images, tmp_path / "out" / "table.csv", disable_tta=True, device="cpu",
                                   threads=1, report=reported.append)  # fmt: skip
        (cost,) = costs
        assert costs == reported and (cost.case, cost.size) == ("case_0", (28, 24, 20))
        assert 0 < cost.loading_s < cost.seconds
        assert 100 < cost.max_mb < 4000  # Python, torch and nnU-Net alone
        assert 0.1 * cost.max_mb * cost.seconds < cost.area_mb_s <= cost.max_mb * cost.seconds
        with open(tmp_path / "out" / "table.csv", newline="") as file:
            assert list(csv.reader(file)) == [list(COLUMNS), list(cost.row)]
    assert {entry.name for entry in tmp_path.iterdir()} == {"images", "model", "out", "student.onnx"}


def test_measure_efficiency__a_case_with_an_odd_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = write_images(tmp_path / "images").iterdir()
    image.rename(image.with_name("=cmd()_0000.nii.gz"))
    monkeypatch.setattr(efficiency, "_measure", lambda case, size, *_: CaseCost(case, size, 1.0, 1.0, 1.0, 1.0))
    measure_efficiency(write_model(tmp_path / "model"), tmp_path / "images", tmp_path / "table.csv", device="cpu")
    with open(tmp_path / "table.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["case", "'=cmd()"]


@pytest.mark.slow
@pytest.mark.really_spawned
def test_measure_efficiency__a_case_that_fails_is_named_with_the_reason(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images)
    bad = images / "case_0_0000.nii.gz"
    model = write_model(tmp_path / "model")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    torch.save({**content, "network_weights": {}}, checkpoint)
    with pytest.raises(UserError, match=r"the prediction of case_0 failed with exit code 1 \(.*Error.*\)"):
        measure_efficiency(model, images, tmp_path / "table.csv", device="cpu", threads=1)
    assert bad.is_file() and not (tmp_path / "table.csv").exists()


def test_measure_efficiency__images_that_cannot_be_used_are_named_and_the_others_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prediction itself, which takes a process of its own, is not what this is about."""
    images, model = write_images(tmp_path / "images"), write_model(tmp_path / "model")
    (images / "bad_0000.nii.gz").write_bytes((images / "case_0_0000.nii.gz").read_bytes()[:3000])
    monkeypatch.setattr("nnssl.deployment.efficiency._measure", lambda case, *_: CaseCost(case, (1,), 1, 1, 1, 1))
    arguments = ["-m", str(model), "-i", str(images), "-device", "cpu", "-o", str(tmp_path / "table.csv")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 3
    assert "bad is left out: unreadable image: bad_0000.nii.gz: cut" in capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["case", "case_0"]
    (images / "case_0_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no image can be used; the last one: unreadable image: bad_0000.nii.gz"):
        measure_efficiency(model, images, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step_size": 2.0}, r"-step_size 2.0 must be"),
        ({"folds": ["1"]}, r"has no fold_1/checkpoint_final.pth; choose with -f and -chk among: fold_0/checkpoint_fin"),
        ({"images": "nowhere"}, r"there is no folder nowhere"),
        ({"device": "cuda"}, r"no CUDA card; use -device cpu"),
        ({"model": "nowhere"}, r"there is no folder nowhere; give -m"),
    ],
)
def test_measure_efficiency__a_mistake_is_a_sentence(
    change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments: dict[str, Any] = {"model": write_model(tmp_path / "model"), "images": write_images(tmp_path / "images"),
                                 "device": "cpu", **change}  # fmt: skip
    with pytest.raises(UserError, match=said):
        measure_efficiency(**arguments)


def test_measure_efficiency__a_file_has_one_fold(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").touch()
    with pytest.raises(UserError, match=r"-f chooses folds of a model folder, and .*student.onnx is a file with one"):
        measure_efficiency(tmp_path / "student.onnx", tmp_path, folds=[0], device="cpu")

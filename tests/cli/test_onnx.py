"""nnssl_export_onnx, nnssl_predict_onnx and nnssl_efficiency; what they compute is tested in tests/deployment."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.cli import efficiency, export_onnx, predict_onnx
from nnssl.deployment.efficiency import CaseCost
from tests.deployment.models import write_images, write_model


def _labels(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "case_0.nii.gz")))


def test_main__from_a_model_folder_to_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = write_model(tmp_path / "model", fold="1", axes=(2,)), tmp_path / "student.onnx"
    images = write_images(tmp_path / "images")
    export_onnx.main(["-m", str(model), "-f", "1", "-o", str(file)])
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: 0.1 MB, opset 18, patch 12x16x16, largest difference of the logits to PyTorch ")
    first, then, line = said.splitlines()
    assert float(first.split()[-1]) < 1e-4 and then == "next:"
    assert predict_onnx.parser().parse_args(shlex.split(line)[1:]).models == [str(file)]
    predict = ["-i", str(images), "-m", str(file), "-device", "cpu", "-threads", "1", "--disable_progress_bar"]
    predict_onnx.main([*predict, "-o", str(tmp_path / "workers"), "-npp", "1", "-nps", "1"])
    predict_onnx.main([*predict, "-o", str(tmp_path / "alone"), "-npp", "0", "-nps", "0"])
    assert len(np.unique(_labels(tmp_path / "workers"))) > 1
    np.testing.assert_array_equal(_labels(tmp_path / "workers"), _labels(tmp_path / "alone"))


def test_main__the_table_has_a_header_and_a_line_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(model: str, images: str, folds: list[str], report: Callable[[CaseCost], None], **_: object) -> None:
        assert (model, images, folds) == ("m", "i", ["0", "1"])
        report(CaseCost("case_a", (512, 512, 55), 12.344, 5.0, 1234.5, 9999.6))
        report(CaseCost("case_b", (512, 512, 554), 20.0, 5.0, 5000.0, 88888.0))

    monkeypatch.setattr("nnssl.deployment.efficiency.measure_efficiency", measure)
    efficiency.main(["-m", "m", "-i", "i", "-f", "0", "1"])
    header, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["case", "size", "seconds", "loading_s", "max_mb", "area_mb_s", "within_15_s", "within_4_gb"]
    assert first == ["case_a", "512x512x55", "12.34", "5.00", "1234", "10000", "yes", "yes"]
    assert second == ["case_b", "512x512x554", "20.00", "5.00", "5000", "88888", "no", "no"]


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (export_onnx, ["-m", "nowhere", "-o", "x.onnx"], "error: there is no folder nowhere"),
        (predict_onnx, ["-i", "i", "-o", "o", "-m", "nowhere.onnx", "-device", "cpu"], "error: there is no file nowh"),
        (efficiency, ["-m", "nowhere", "-i", "i", "-device", "cpu"], "error: there is no folder nowhere"),
    ],
)
def test_main__a_mistake_is_a_sentence(
    command: object, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)  # type: ignore[attr-defined]
    shown = capsys.readouterr()
    assert exit_.value.code == 1 and shown.out == ""
    assert shown.err.startswith(said) and shown.err.count("\n") == 1

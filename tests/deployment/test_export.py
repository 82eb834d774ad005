from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.deployment import export
from nnssl.deployment.export import export_onnx, largest_difference, to_onnx
from nnssl.deployment.model_folder import read_model
from nnssl.deployment.session import open_model, run
from tests.deployment.models import DATASET_JSON, TRAINERS, model_plans, write_model

PROBE: dict[str, Any] = {"trainer": "nnUNetTrainer_SSLProbe", "levels": "decoder", "axes": None}
# Networks whose maps go through every kind of layer of the house; the patch of the last but one needs padding inside.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"kind": "ResidualEncoderUNet"},
    "fpn": {"kind": "FPN3dUNet", "patch": [8, 16, 16]},
    "2d": {"configuration": "2d", "axes": (0, 1)},
    "cascade": {"configuration": "3d_cascade_fullres"},
    "pyramid": {**PROBE, "head": "nonlinear", "patch": [9, 18, 15]},
    "whole": {**PROBE, "trainer": "nnUNetTrainer_VoCoFinetune", "head": "unet"},
}


@pytest.fixture(autouse=True)
def _trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))


@pytest.mark.parametrize("name", MODELS)
def test_export_onnx__equals_pytorch_and_says_all_that_prediction_needs(name: str, tmp_path: Path) -> None:
    options = MODELS[name]
    folder, file = write_model(tmp_path / "model", **options), tmp_path / "new" / "student.onnx"
    assert 0 < export_onnx(folder, file) < 1e-4
    onnx.checker.check_model(str(file), full_check=True)
    assert {(o.domain, o.version) for o in onnx.load(file).opset_import} == {("", 18)}
    opened, model = open_model(file), read_model(folder, "0", "checkpoint_final.pth")
    assert opened.description == model.description
    said = opened.description
    assert said.plans == model_plans(options.get("kind", "PlainConvUNet"), options.get("patch")) | (
        {"nnssl": said.plans["nnssl"]} if "head" in options else {}
    )
    assert (said.dataset_json, said.fold) == (DATASET_JSON, 0)
    assert said.configuration == options.get("configuration", "3d_fullres")
    assert said.trainer_name == options.get("trainer", "nnUNetTrainer")
    axes = options.get("axes", (0, 1, 2))
    assert said.mirroring_axes == (None if axes is None else list(axes))
    image = torch.randn(4, *model.input_shape)  # another number than in the export
    with torch.inference_mode():
        np.testing.assert_allclose(run(opened.session, image.numpy()), model.network(image).numpy(), atol=1e-4)
    assert [entry.name for entry in file.parent.iterdir()] == ["student.onnx"]


def test_export_onnx__refuses_another_network_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = write_model(tmp_path / "model"), tmp_path / "student.onnx"

    made: list[bytes] = []

    def altered(model: Any) -> bytes:
        bias = model.network.decoder.seg_layers[-1].bias
        if not made:
            with torch.no_grad():
                bias[1] += 0.002
                made.append(to_onnx(model))
                bias[1] -= 0.002
        return made[0]

    monkeypatch.setattr(export, "to_onnx", altered)
    with pytest.raises(
        UserError, match=r"difference .* is 2\.0.e-03, more than 0\.001; .*student.onnx was not written"
    ):
        export_onnx(folder, file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    file.write_text("the earlier one")
    with pytest.raises(UserError):
        export_onnx(folder, file)
    assert file.read_text() == "the earlier one"


def test_largest_difference__is_no_number_where_the_network_gives_none(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path), "0", "checkpoint_final.pth")
    content = to_onnx(model)
    assert largest_difference(model, content) < 1e-4
    with torch.no_grad():
        model.network.decoder.seg_layers[-1].bias[0] = float("nan")
    assert not largest_difference(model, content) <= 1e-3


def test_export_onnx__a_network_that_torch_cannot_export_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    original = PlainConvUNet.forward

    def depends_on_values(self: Any, x: torch.Tensor) -> torch.Tensor:
        return original(self, x if float(x.sum()) > 0 else -x)

    monkeypatch.setattr(PlainConvUNet, "forward", depends_on_values)
    with pytest.raises(UserError, match=r"torch .* cannot export this network"):
        export_onnx(write_model(tmp_path / "model"), tmp_path / "student.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_export_onnx__a_missing_package_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript.*pip install onnx onnxscript onnxruntime psutil"):
        export_onnx(tmp_path, tmp_path / "student.onnx")


def test_export_onnx__a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give -o a file"):
        export_onnx(tmp_path, tmp_path)

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest

from nnssl.core.errors import UserError
from nnssl.deployment.export import to_onnx
from nnssl.deployment.model_folder import read_model
from nnssl.deployment.session import Description, open_model
from tests.deployment.models import DATASET_JSON, model_plans, write_model


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return to_onnx(read_model(write_model(tmp_path_factory.mktemp("model")), "0", "checkpoint_final.pth"))


def test_open_model__a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*student.onnx; nnssl_export_onnx makes one"):
        open_model(tmp_path / "student.onnx")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_open_model__a_damaged_file_is_a_sentence(keep: float, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "student.onnx"
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"student.onnx cannot be read as an ONNX file, make it again with nnssl_exp"):
        open_model(file)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            None,
            None,
            r"student.onnx does not say which plans its network belongs to; give a file that nnssl_export_onnx",
        ),
        ("nnssl.format", "2", r"the description in .*student.onnx cannot be read; give a file that nnssl_export_onnx"),
        ("nnssl.plans", "{", r"the description in .*student.onnx cannot be read"),
        ("nnssl.configuration", '"red"', r"student.onnx: configuration.* 'red'.*; give a file that nnssl_export_onnx"),
    ],
)
def test_open_model__another_file_is_a_sentence(
    key: str | None, value: str, said: str, content: bytes, tmp_path: Path
) -> None:
    file, proto = tmp_path / "student.onnx", onnx.load_from_string(content)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {} if key is None else {**metadata, key: value})
    onnx.save(proto, str(file))
    with pytest.raises(UserError, match=said):
        open_model(file)


def test_open_model__looks_at_the_names_in_its_plans(content: bytes, tmp_path: Path) -> None:
    file, proto = tmp_path / "student.onnx", onnx.load_from_string(content)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    plans = json.loads(metadata["nnssl.plans"])
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "recursive_find_python_class"
    onnx.helper.set_model_props(proto, {**metadata, "nnssl.plans": json.dumps(plans)})
    onnx.save(proto, str(file))
    with pytest.raises(UserError, match=r"student.onnx: .*resampling_fn_data: .*'recursive_find_python_class'"):
        open_model(file)


def test_description__survives_as_text() -> None:
    labelled = {**DATASET_JSON, "labels": {"background": 0, "bücher": 1}, "ours": [1, 2.5, None]}
    made = Description(model_plans(), labelled, "2d", "all", "T", None, "0.1")
    assert Description.from_metadata({"other": "1", **made.to_metadata()}, "file") == made


def test_open_model__a_card_that_onnx_runtime_cannot_use_is_a_sentence(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It offers the provider, warns that a library is missing, and goes on with the processor."""
    (tmp_path / "student.onnx").write_bytes(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_args, **_kwargs: session)
    with pytest.raises(UserError, match=r"ONNX Runtime .* cannot use a CUDA card here; give -device cpu, or type: pip"):
        open_model(tmp_path / "student.onnx", "cuda")

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnssl.cli.predict_onnx import main
from nnssl.core.errors import UserError
from nnssl.deployment.cases import list_cases, why_left_out
from nnssl.deployment.export import export_onnx
from nnssl.deployment.predict import SessionNetwork, limited_threads, make_predictor, predict_onnx
from nnssl.deployment.session import open_model
from tests.deployment.models import DATASET_JSON, TRAINERS, model_plans, write_images, write_model
from tests.phantoms import write_volume

NO_WORKERS = {"num_processes_preprocessing": 0, "num_processes_segmentation_export": 0}
ONE_PROCESS: dict[str, Any] = {**NO_WORKERS, "device": "cpu", "threads": 1}
# Logits are summed in half precision, in which a last digit of the network's may turn one of the sum.
FEW = 1e-3
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "2d": {"configuration": "2d", "axes": (0, 1)},
    "probe": {"trainer": "nnUNetTrainer_SSLProbe", "axes": None, "levels": "decoder", "head": "nonlinear"},
    "cascade": {"configuration": "3d_cascade_fullres"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """images, and two folds of a model, exported."""
    root = tmp_path_factory.mktemp("onnx")
    write_images(root / "images", cases=2)
    for fold in "01":
        write_model(root / f"of_fold_{fold}", fold=fold)
        export_onnx(root / f"of_fold_{fold}", root / f"fold_{fold}.onnx", fold)
    shutil.copytree(root / "of_fold_0", root / "model")
    shutil.copytree(root / "of_fold_1" / "fold_1", root / "model" / "fold_1")
    yield root
    shutil.rmtree(root)


@pytest.fixture(autouse=True)
def _trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))


def _with_pytorch(
    images: Path, output: Path, model: Path, folds: tuple[int, ...] = (0,), disable_tta: bool = False, **options: Any
) -> None:
    """As `nnUNetv2_predict_from_modelfolder`, in one process.

    Lists of files, since nnU-Net lists a folder in forked processes, which may hang once ONNX Runtime has threads.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir()
    predictor = nnUNetPredictor(use_mirroring=not disable_tta, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    cases = list_cases(images, json.loads((model / "dataset.json").read_text()))
    predictor.predict_from_files_sequential(list(cases.values()), str(output), **options)


def _compare(ours: Path, theirs: Path, cases: int = 2) -> None:
    """The same files; the same labels but for a few voxels; probabilities within 1e-4 but for as few values."""
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    for name in ("plans.json", "dataset.json"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
    for case in range(cases):
        a, b = (sitk.ReadImage(str(folder / f"case_{case}.nii.gz")) for folder in (ours, theirs))
        assert a.GetSpacing() == b.GetSpacing() and a.GetOrigin() == b.GetOrigin()
        labels, expected = sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b)
        assert labels.dtype == expected.dtype and len(np.unique(expected)) > 1
        assert np.mean(labels != expected) <= FEW
        if (theirs / f"case_{case}.npz").is_file():
            p, q = (np.load(folder / f"case_{case}.npz")["probabilities"] for folder in (ours, theirs))
            difference = np.abs(p.astype(float) - q)
            assert difference.max() < 1e-3 and np.mean(difference > 1e-4) <= FEW


@pytest.mark.parametrize("name", MODELS)
def test_predict_onnx__gives_what_nnunet_gives(name: str, made: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    first = None
    if name == "cascade":
        first = str(tmp_path / "first")
        Path(first).mkdir()
        image = sitk.ReadImage(str(images / "case_0_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 50, sitk.sitkUInt8), f"{first}/case_0.nii.gz")
    model = write_model(tmp_path / "model", **MODELS[name])
    export_onnx(model, tmp_path / "student.onnx")
    _with_pytorch(images, tmp_path / "theirs", model, save_probabilities=True, folder_with_segs_from_prev_stage=first)
    predict_onnx(images, tmp_path / "ours", [tmp_path / "student.onnx"], save_probabilities=True,
                 prev_stage_predictions=first, **ONE_PROCESS)  # fmt: skip
    _compare(tmp_path / "ours", tmp_path / "theirs", 1)


def test_predict_onnx__several_files_are_an_ensemble_of_folds(made: Path, tmp_path: Path) -> None:
    _with_pytorch(made / "images", tmp_path / "theirs", made / "model", (0, 1), True, save_probabilities=True)
    both = [made / "fold_0.onnx", made / "fold_1.onnx"]
    predict_onnx(made / "images", tmp_path / "ours", both, disable_tta=True, save_probabilities=True, **ONE_PROCESS)
    _compare(tmp_path / "ours", tmp_path / "theirs")
    predict_onnx(made / "images", tmp_path / "one", both[:1], disable_tta=True, save_probabilities=True, **ONE_PROCESS)
    with pytest.raises(AssertionError):
        _compare(tmp_path / "one", tmp_path / "theirs")


def test_predict_onnx__parts_share_the_cases_and_a_second_call_goes_on(made: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"disable_tta": True, **ONE_PROCESS}
    predict_onnx(made / "images", tmp_path, [made / "fold_0.onnx"], num_parts=2, part_id=1, **options)
    assert [file.name for file in tmp_path.glob("*.nii.gz")] == ["case_1.nii.gz"]
    predict_onnx(made / "images", tmp_path, [made / "fold_0.onnx"], num_parts=3, part_id=2, **options)
    (tmp_path / "case_1.nii.gz").write_bytes(b"done")
    predict_onnx(made / "images", tmp_path, [made / "fold_0.onnx"], continue_prediction=True, **options)
    assert {file.name for file in tmp_path.glob("*.nii.gz")} == {"case_0.nii.gz", "case_1.nii.gz"}
    assert (tmp_path / "case_1.nii.gz").read_bytes() == b"done"


def test_predict_onnx__keeps_to_its_threads_and_gives_them_back(made: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with limited_threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    assert open_model(made / "fold_0.onnx", threads=3).session.get_session_options().intra_op_num_threads == 3


def test_predict_onnx__compiling_is_left_to_onnx_runtime(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "true")
    predictor = make_predictor([open_model(made / "fold_0.onnx")], 0.5, False, "cpu")
    assert isinstance(predictor.network, SessionNetwork)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step_size": 0.0}, r"-step_size 0.0 must be above 0 and at most 1"),
        ({"num_parts": 2, "part_id": 2}, r"-part_id 2 of -num_parts 2: parts are counted from 0"),
        ({"num_processes_preprocessing": 1}, r"-npp and -nps must both be at least 1, or both 0"),
        ({"prev_stage_predictions": "first"}, r"not the second stage of a cascade; leave out -prev_stage"),
        ({"device": "cuda"}, r"cannot use a CUDA card here; give -device cpu"),
        ({"input_folder": "nowhere"}, r"there is no folder nowhere; give -i a folder of images named like"),
        ({"input_folder": TRAINERS}, r"holds no image that the model can read; name them like case_0000.nii"),
    ],
)
def test_predict_onnx__a_mistake_is_a_sentence(
    change: dict[str, Any], said: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    arguments: dict[str, Any] = {"input_folder": made / "images", "output_folder": tmp_path / "out",
                                 "models": [made / "fold_0.onnx"], **ONE_PROCESS, **change}  # fmt: skip
    with pytest.raises(UserError, match=said):
        predict_onnx(**arguments)
    assert not (tmp_path / "out").exists()


def test_predict_onnx__a_case_without_its_channels_is_named(made: Path, tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(UserError, match=r"the case 'a' has 2 files with a channel number, the model wants 1"):
        predict_onnx(tmp_path, tmp_path / "out", [made / "fold_0.onnx"], **ONE_PROCESS)


def test_predict_onnx__images_that_cannot_be_used_are_named_and_the_others_predicted(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images")
    good = (images / "case_0_0000.nii.gz").read_bytes()
    (images / "cut_0000.nii.gz").write_bytes(good[: len(good) // 2])
    os.mkfifo(images / "fifo_0000.nii.gz")
    values = np.full((8, 10, 12), 3.0, np.float32)
    values[2, 2, 2] = 1e38
    write_volume(images / "large_0000.nii.gz", values, (3.0, 1.5, 1.5))
    arguments = ["-i", str(images), "-m", str(made / "fold_0.onnx"), "-device", "cpu", "-threads", "1",
                 "--disable_tta", "--disable_progress_bar", "-o", str(tmp_path / "out")]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-npp", "0", "-nps", "0"])
    assert stopped.value.code == 3
    said = capsys.readouterr().out
    for name, reason in (("cut", "cut:"), ("fifo", "FIFO"), ("large", "1e+38")):
        assert any(f"{name} is left out" in line and reason in line for line in said.splitlines())
    assert [file.name for file in (tmp_path / "out").glob("*.nii.gz")] == ["case_0.nii.gz"]
    handed: list[Any] = []
    target = "nnunetv2.inference.predict_from_raw_data.nnUNetPredictor.predict_from_files"
    monkeypatch.setattr(target, lambda _self, images, *_args, **_options: handed.extend(images))
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "-npp", "1", "-nps", "1"])
    assert stopped.value.code == 3 and handed == [[str(images / "case_0_0000.nii.gz")]]


def test_predict_onnx__nothing_is_written_where_no_image_can_be_used(made: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image can be used; the first one: unreadable image: a_0000.nii.gz"):
        predict_onnx(tmp_path / "images", tmp_path / "out", [made / "fold_0.onnx"], **ONE_PROCESS)
    assert not (tmp_path / "out").exists()


def test_why_left_out__sizes_and_channels_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(write_images(tmp_path) / "case_0_0000.nii.gz")]
    plans = model_plans()
    assert why_left_out(files, plans, "3d_fullres", DATASET_JSON) is None
    two = {**DATASET_JSON, "channel_names": {"0": "T1", "1": "T2"}}
    assert "wrong number of channels: 1, the model wants 2" in str(why_left_out(files, plans, "3d_fullres", two))
    first = tmp_path / "first.nii.gz"
    first.write_bytes(b"")
    assert "unreadable label" in str(why_left_out(files, plans, "3d_fullres", DATASET_JSON, str(first)))
    monkeypatch.setattr("nnssl.data.check_files.memory_limit", lambda: 300_000)  # the voxels as read take 81 kB
    plans["configurations"]["3d_fullres"]["spacing"] = [0.5, 0.5, 0.5]
    assert "voxels at the plans' spacing" in str(why_left_out(files, plans, "3d_fullres", DATASET_JSON))
    assert why_left_out(files, plans, "another", DATASET_JSON) is None


def test_predict_onnx__a_cascade_wants_its_first_stage(made: Path, tmp_path: Path) -> None:
    export_onnx(write_model(tmp_path / "model", configuration="3d_cascade_fullres"), tmp_path / "student.onnx")
    arguments = (made / "images", tmp_path / "out", [tmp_path / "student.onnx"])
    with pytest.raises(UserError, match=r"give the predictions of 3d_lowres with -prev_stage_predictions FOLDER"):
        predict_onnx(*arguments, **ONE_PROCESS)
    with pytest.raises(UserError, match=r"lacks predictions of 3d_lowres for case_0, case_1"):
        predict_onnx(*arguments, prev_stage_predictions=str(tmp_path), **ONE_PROCESS)


def test_predict_onnx__models_that_do_not_belong_together_are_refused(made: Path, tmp_path: Path) -> None:
    export_onnx(write_model(tmp_path / "model", axes=(0,)), tmp_path / "other.onnx")
    models = [made / "fold_0.onnx", tmp_path / "other.onnx"]
    with pytest.raises(UserError, match=r"fold_0.onnx and .*other.onnx differ in their mirroring_axes; give folds"):
        predict_onnx(made / "images", tmp_path / "out", models, **ONE_PROCESS)

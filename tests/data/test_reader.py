from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.data.conftest import Folders
from tests.phantoms import write_ct_dataset

TINY: dict[str, Any] = {"preset": "nnsslPlans_tiny", "num_processes": 1}
READER = "NibabelIOWithReorient"


@pytest.fixture
def mixed(folders: Folders) -> Path:
    """A raw dataset: case_001 is case_000 with its axes in another order and direction."""
    folder = write_ct_dataset(folders.raw, 1, "X", 1, labelled=True)
    for file in (folder / "imagesTr" / "case_000_0000.nii.gz", folder / "labelsTr" / "case_000.nii.gz"):
        turned = sitk.DICOMOrient(sitk.ReadImage(str(file)), "PIR")
        sitk.WriteImage(turned, str(file).replace("case_000", "case_001"))
    return folder


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def _values(volume: Path) -> Any:
    return blosc2.open(str(volume), mode="r")[:]  # its bytes are not always the same


def test_reorient__all_images_are_alike_and_predictions_fit_their_files(
    mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    (result,) = plan_and_preprocess([1], **TINY, reorient=True)
    home = result.folder.parent
    assert _json(home / "nnsslPlans_tiny_left_out.json")["orientation"]["counts"] == {"RAS": 2}
    assert "oriented" not in caplog.text
    assert _json(home / "dataset.json") == {**_json(mixed / "dataset.json"), "overwrite_image_reader_writer": READER}
    plans = PlansManager(_json(home / "nnsslPlans_tiny.json"))
    assert plans.plans["image_reader_writer"] == READER
    configuration, volumes = plans.get_configuration("3d_fullres"), nnUNetDatasetBlosc2(str(result.folder))
    first, second = (volumes.load_case(case) for case in result.cases)
    np.testing.assert_array_equal(first[0][:], second[0][:])
    for case, (_, seg, _, properties) in zip(result.cases, (first, second), strict=True):
        logits = np.stack([seg[0] == value for value in range(3)]).astype(np.float32)
        logits[0] += seg[0] < 0
        export_prediction_from_logits(
            logits, properties, configuration, plans, _json(home / "dataset.json"), str(tmp_path / case)
        )
        predicted, drawn = (sitk.ReadImage(str(folder / f"{case}.nii.gz")) for folder in (tmp_path, mixed / "labelsTr"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(predicted), sitk.GetArrayFromImage(drawn))
        np.testing.assert_allclose(predicted.GetDirection(), drawn.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(predicted.GetOrigin(), drawn.GetOrigin(), atol=1e-4)


def test_reorient__plans_that_exist_are_replaced_on_request_only(
    mixed: Path, folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    (result,) = plan_and_preprocess([1], **TINY)
    assert "LPS" in caplog.text and "case_001 (PIR)" in caplog.text and "--reorient" in caplog.text
    home, volume = result.folder.parent, result.folder / "case_001.b2nd"
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    values = _values(volume)
    with pytest.raises(UserError, match=f"nnsslPlans_tiny .*SimpleITKIO.*{READER}.*--overwrite_plans"):
        plan_and_preprocess([1], **TINY, reorient=True)
    file = mixed / "dataset.json"
    plain = file.read_text()
    file.write_text(json.dumps(_json(file) | {"overwrite_image_reader_writer": READER}))  # the stock way
    with pytest.raises(UserError, match="--overwrite_plans"):
        plan_and_preprocess([1], **TINY)
    file.write_text(plain)
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == before

    plan_and_preprocess([1], **TINY, reorient=True, overwrite_plans=True)
    assert _values(volume).shape != values.shape
    assert _json(home / "dataset_fingerprint.json")["spacings"] == [[3.0, 1.5, 1.5]] * 2  # read anew
    written = volume.stat().st_mtime_ns
    plan_and_preprocess([1], **TINY)  # they go on as they are
    assert volume.stat().st_mtime_ns == written and _json(home / "dataset.json")["overwrite_image_reader_writer"]
    plan_and_preprocess([1], **TINY, overwrite_plans=True)
    np.testing.assert_array_equal(_values(volume), values)
    assert "overwrite_image_reader_writer" not in _json(home / "dataset.json")
    assert _json(home / "dataset_fingerprint.json")["spacings"] == [[3.0, 1.5, 1.5], [1.5, 3.0, 1.5]]


def test_reorient__datasets_that_share_plans_are_read_alike(mixed: Path, folders: Folders) -> None:
    write_ct_dataset(folders.raw, 2, "Y", 1)
    write_ct_dataset(folders.raw, 3, "Z", 1, file_ending=".nrrd")
    results = plan_and_preprocess([1, 2, 3], **TINY, reorient=True)
    readers = [_json(r.folder.parent / f"{r.plans_name}.json")["image_reader_writer"] for r in results]
    assert readers == [READER, READER, "SimpleITKIO"]


def test_reorient__needs_nifti(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 1, file_ending=".nrrd")
    with pytest.raises(UserError, match=r"Dataset001_X has \.nrrd files.*--reorient"):
        plan_and_preprocess([1], **TINY, reorient=True)
    assert not list((folders.preprocessed / "Dataset001_X").glob("*"))

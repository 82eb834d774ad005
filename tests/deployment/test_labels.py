from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.deployment import labels
from nnssl.deployment.labels import export_labels, exporting_labels, largest_class
from tests.deployment.models import model_plans

ISOTROPIC = (1.5, 1.5, 1.5)


def _logits(classes: int, *size: int) -> np.ndarray:
    """Rounded, so that some are equal."""
    return np.random.default_rng(0).normal(size=(classes, *size)).round(1).astype(np.float16)


@pytest.mark.parametrize(
    ("size", "shape", "spacing", "new_spacing", "apart"),
    [
        ((20, 11, 13), (9, 17, 19), ISOTROPIC, (3.3, 0.98, 0.98), None),  # slices apart, fewer of them
        ((7, 11, 13), (12, 17, 19), ISOTROPIC, (0.8, 0.7, 4.0), None),  # and more
        ((9, 11, 13), (9, 17, 19), (3.3, 1.5, 1.5), (3.3, 0.98, 0.98), None),  # and as many
        ((9, 11, 13), (9, 11, 19), (1, 1, 3.5), (1, 1, 1), False),
        ((9, 11, 13), (20, 17, 19), ISOTROPIC, (1, 1, 1), None),
        ((9, 11, 13), (9, 11, 13), ISOTROPIC, ISOTROPIC, None),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_largest_class__is_that_of_nnunets_resampled_logits(
    size: tuple[int, ...], shape: tuple[int, ...], spacing: Any, new_spacing: Any, apart: bool | None, threads: int
) -> None:
    options = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": apart}
    resampling, logits = partial(resample_data_or_seg_to_shape, **options), _logits(4, *size)
    expected = resampling(logits.copy(), shape, spacing, new_spacing).argmax(0)
    found = largest_class(logits, shape, spacing, new_spacing, resampling, threads)
    assert np.array_equal(found, expected)
    assert np.array_equal(logits, _logits(4, *size))


@pytest.mark.parametrize("regions", [False, True])
def test_export_labels__writes_the_file_that_nnunet_writes(tmp_path: Path, regions: bool) -> None:
    plans = model_plans() | {"image_reader_writer": "SimpleITKIO", "transpose_forward": [2, 0, 1],
                            "transpose_backward": [1, 2, 0]}  # fmt: skip
    manager = PlansManager(plans)
    names: dict[str, Any] = {"background": 0, "liver": 1, "spleen": 2}
    content: dict[str, Any] = {"labels": names, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    if regions:
        content |= {"labels": names | {"liver": [1, 2]}, "regions_class_order": [1, 2]}
    properties = {
        "spacing": (0.8, 0.9, 4.0), "shape_before_cropping": (9, 22, 20),
        "bbox_used_for_cropping": [[1, 8], [2, 20], [0, 19]],
        "shape_after_cropping_and_before_resampling": (7, 18, 19),
        "sitk_stuff": {"spacing": (0.8, 0.9, 4.0), "origin": (1, 2, 3), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)},
    }  # fmt: skip
    read = []
    for number, export in enumerate((export_prediction_from_logits, export_labels)):
        export(_logits(2 if regions else 3, 11, 12, 13), properties, manager.get_configuration("3d_fullres"), manager,
               content, str(tmp_path / f"case{number}"))  # fmt: skip
        read.append(sitk.ReadImage(tmp_path / f"case{number}.nii.gz"))
    ours, theirs = (sitk.GetArrayFromImage(image) for image in read)
    assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs) and len(np.unique(ours)) == 3
    assert read[0].GetDirection() == read[1].GetDirection() and read[0].GetSpacing() == read[1].GetSpacing()


def test_exporting_labels__only_inside_the_context() -> None:
    with exporting_labels():
        assert predict_from_raw_data.export_prediction_from_logits is labels.export_labels
    assert predict_from_raw_data.export_prediction_from_logits is export_prediction_from_logits

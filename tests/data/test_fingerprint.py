from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.core.errors import UserError
from nnssl.data.check_case import body_mask_ct
from nnssl.data.fingerprint import make_fingerprint, scan_case, scan_dataset
from nnssl.data.raw import read_raw_dataset
from tests.phantoms import ct_volume, write_ct_dataset, write_mr_dataset, write_volume


def test_scan_case__labelled_equals_nnunet(tmp_path: Path) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    write_mr_dataset(tmp_path, 1, "X", 1, labelled=True)
    case = read_raw_dataset(tmp_path, "Dataset001_X").cases["case_000"]
    scan = scan_case(case, reader=SimpleITKIO, num_channels=2, ct_channel=None, num_samples=500)
    shape, spacing, intensities, _, relative_size = DatasetFingerprintExtractor.analyze_case(
        list(case.images), str(case.label), SimpleITKIO, 500
    )
    assert scan.shape == tuple(shape)
    np.testing.assert_allclose(scan.spacing, spacing)
    assert scan.relative_size == relative_size < 1
    np.testing.assert_array_equal(scan.intensities, intensities)


def test_scan_case__unlabelled_ct_draws_from_the_body(tmp_path: Path) -> None:
    write_ct_dataset(tmp_path, 1, "X", 1)
    case = read_raw_dataset(tmp_path, "Dataset001_X").cases["case_000"]
    scan = scan_case(case, reader=SimpleITKIO, num_channels=1, ct_channel=0, num_samples=5000)
    hu, _ = ct_volume((24, 40, 40), np.random.default_rng((0, 1, 0)))
    inside = hu[body_mask_ct(hu)]
    assert scan.intensities[0].min() > -1000  # lung, but no outside air
    assert abs(scan.intensities[0].mean() - inside.mean()) < 15
    assert scan.shape == (24, 40, 40)
    assert scan.spacing == (3.0, 1.5, 1.5)
    assert scan.orientation == "LPS"


def test_scan_dataset__bad_volumes_do_not_stop_the_others(tmp_path: Path) -> None:
    folder = write_mr_dataset(tmp_path, 1, "X", 4, num_channels=1)
    (folder / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"")
    write_volume(folder / "imagesTr" / "case_002_0000.nii.gz", np.zeros((8, 8, 8), np.float32), (1, 1, 1))
    dataset = read_raw_dataset(tmp_path, "Dataset001_X")
    scans = scan_dataset(dataset, SimpleITKIO, num_processes=1)
    assert [scan.reason is None for scan in scans] == [True, False, False, True]
    fingerprint = make_fingerprint(scans, dataset)
    assert fingerprint["spacings"] == [[5.0, 1.0, 1.0]] * 2
    assert len(fingerprint["shapes_after_crop"]) == 2
    assert all(shape[1] < 40 for shape in fingerprint["shapes_after_crop"])  # nnU-Net crops the zeros away
    assert 0 < fingerprint["median_relative_size_after_cropping"] < 1
    properties = fingerprint["foreground_intensity_properties_per_channel"]["0"]
    assert properties["min"] > 0  # nothing from outside the head
    assert properties["percentile_00_5"] < properties["median"] < properties["percentile_99_5"]


def test_make_fingerprint__labels_without_foreground(tmp_path: Path) -> None:
    folder = write_mr_dataset(tmp_path, 1, "X", 1, num_channels=1, labelled=True)
    write_volume(folder / "labelsTr" / "case_000.nii.gz", np.zeros((16, 40, 36), np.uint8), (5, 1, 1))
    dataset = read_raw_dataset(tmp_path, "Dataset001_X")
    with pytest.raises(UserError, match="mark no voxel"):
        make_fingerprint(scan_dataset(dataset, SimpleITKIO, 1), dataset)

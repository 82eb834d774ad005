from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scipy import ndimage

from nnssl.core.lock import Lock
from nnssl.data import preprocessing
from nnssl.data.planning import PlanRequest, make_plans
from nnssl.data.preprocessing import Prepared, PreprocessingJob, SharedWork, prepare_case
from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.records import Record, Records
from nnssl.data.storage import body_folder, claimed, claimed_cases
from tests.data.conftest import Folders
from tests.data.test_planning import _ready
from tests.phantoms import ct_volume, write_ct_dataset, write_mr_dataset, write_volume


def _job(folders: Folders, name: str, preset: str) -> tuple[PreprocessingJob, RawDataset]:
    dataset, reader, home = _ready(folders, name)
    plans = make_plans(PlanRequest(preset=preset), dataset, reader, home)
    folder = home / plans["configurations"]["3d_fullres"]["data_identifier"]
    return PreprocessingJob(plans, "3d_fullres", dataset.dataset_json, folder, dataset.ct_channel), dataset


def _load(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, seg, _, _ = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    body = blosc2.open(str(body_folder(folder) / f"{case}.b2nd"), mode="r")
    return image[:], seg[:], body[:].astype(bool)


def test_prepare_case__vox2vec_values_and_body(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 1)
    job, dataset = _job(folders, "Dataset001_X", "nnsslPlans_vox2vec")
    assert prepare_case(dataset.cases["case_000"], job).reason is None
    image, _, body = _load(job.folder, "case_000")
    assert image.shape == (1, 36, 60, 60)  # 24 x 3 mm at 2 mm, 40 x 1.5 mm at 1 mm
    assert image.min() >= 0
    assert image.max() <= 1
    hu = image[0] * 2350 - 1350
    # The body lines up with the image: outside air around it, tissue and enclosed lung in it.
    assert hu[~body].max() < -200
    assert (hu[~body] < -900).mean() > 0.8
    assert (hu[body] < -700).any()
    assert body[:, 30, 30].mean() > 0.9
    outside_body = (hu >= -500) & ~body
    assert outside_body.sum() < 0.03 * body.sum()  # only the interpolated rim


def test_prepare_case__slices_along_another_axis(folders: Folders) -> None:
    """The body mask follows nnU-Net's transpose: the same volume, stored with other axes, gives the same."""
    write_ct_dataset(folders.raw, 1, "X", 1)
    hu, _ = ct_volume((24, 40, 40), np.random.default_rng((0, 1, 0)))
    moved = write_ct_dataset(folders.raw, 2, "Y", 1)
    write_volume(moved / "imagesTr" / "case_000_0000.nii.gz", np.moveaxis(hu, 0, 1), (1.5, 3.0, 1.5))
    loaded = []
    for name in ("Dataset001_X", "Dataset002_Y"):
        job, dataset = _job(folders, name, "nnsslPlans_tiny")
        assert prepare_case(dataset.cases["case_000"], job).reason is None
        loaded.append(_load(job.folder, "case_000"))
    assert job.plans["transpose_forward"] == [1, 0, 2]
    assert loaded[1][0].shape == (1, 24, 40, 40)
    np.testing.assert_array_equal(loaded[0][2], loaded[1][2])
    assert 0.3 < loaded[1][2].mean() < 0.7


def test_prepare_case__mr_two_channels_body_is_nonzero(folders: Folders) -> None:
    write_mr_dataset(folders.raw, 1, "X", 1)
    job, dataset = _job(folders, "Dataset001_X", "nnsslPlans_tiny")
    assert prepare_case(dataset.cases["case_000"], job).reason is None
    image, seg, body = _load(job.folder, "case_000")
    assert image.shape[0] == 2
    np.testing.assert_array_equal(body, seg[0] >= 0)
    assert 0.2 < body.mean() < 0.9
    stored = blosc2.open(str(body_folder(job.folder) / "case_000.b2nd"), mode="r")
    assert len(stored.schunk.vlmeta["intensity_range"]) == 2


def test_prepare_case__labelled_equals_stock(folders: Folders, tmp_path: Path) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_ct_dataset(folders.raw, 1, "X", 1, labelled=True)
    job, dataset = _job(folders, "Dataset001_X", "nnsslPlans_tiny")
    case = dataset.cases["case_000"]
    assert prepare_case(case, job).reason is None
    plans = PlansManager(job.plans)
    (tmp_path / "stock").mkdir()
    DefaultPreprocessor(verbose=False).run_case_save(
        str(tmp_path / "stock" / "case_000"), list(case.images), case.label, plans,
        plans.get_configuration("3d_fullres"), job.dataset_json,
    )  # fmt: skip
    assert (job.folder / "case_000.pkl").read_bytes() == (tmp_path / "stock" / "case_000.pkl").read_bytes()
    for file in ("case_000.b2nd", "case_000_seg.b2nd"):  # blosc2's threads order the blocks of a chunk by chance
        ours, stock = (blosc2.open(str(folder / file), mode="r") for folder in (job.folder, tmp_path / "stock"))
        np.testing.assert_array_equal(ours[:], stock[:])
        for key in ("dtype", "chunks", "blocks"):
            assert getattr(ours, key) == getattr(stock, key), key
        for key in ("codec", "clevel", "filters"):
            assert getattr(ours.schunk.cparams, key) == getattr(stock.schunk.cparams, key), key


def test_prepare_case__adds_the_mask_to_a_preprocessed_case(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 1)
    job, dataset = _job(folders, "Dataset001_X", "nnsslPlans_vox2vec")
    prepare_case(dataset.cases["case_000"], job)
    _, _, from_raw = _load(job.folder, "case_000")
    (body_folder(job.folder) / "case_000.b2nd").unlink()
    before = {file.name: file.read_bytes() for file in job.folder.iterdir()}
    added = prepare_case("case_000", job)
    assert (added.reason, added.orientation) == (None, "LPS")
    _, _, from_image = _load(job.folder, "case_000")
    moved = (from_image != from_raw).squeeze()  # the threshold falls before or after the resampling
    body = from_raw.squeeze() > 0
    edge = ndimage.binary_dilation(body) ^ ndimage.binary_erosion(body, border_value=1)
    assert not (moved & ~edge).any() and moved.mean() < 0.011  # at most a slice at each end
    assert {file.name: file.read_bytes() for file in job.folder.iterdir()} == before


def test_prepare_case__odd_failure_is_a_reason_full_disk_is_not(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mr_dataset(folders.raw, 1, "X", 1, num_channels=1)
    job, dataset = _job(folders, "Dataset001_X", "nnsslPlans_tiny")

    def raising(error: Exception) -> Any:
        def save(*_: Any) -> None:
            raise error

        return save

    monkeypatch.setattr(preprocessing, "save_case", raising(ZeroDivisionError("odd")))
    assert prepare_case(dataset.cases["case_000"], job).reason == "preprocessing failed: ZeroDivisionError: odd"
    for error in (OSError(errno.ENOSPC, "full"), MemoryError()):
        monkeypatch.setattr(preprocessing, "save_case", raising(error))
        with pytest.raises(type(error)):
            prepare_case(dataset.cases["case_000"], job)


CASES = [RawCase(name, ()) for name in "abc"]


class Job:
    """Prepares cases, and notes what it was given while they were claimed."""

    def __init__(self, folder: Path, replaced: Collection[str] = ()) -> None:
        self.folder, self.made, self.said = folder, list[str](), list[str]()
        self.work = SharedWork(
            folder, Records(folder), "plans", self._prepare, self._finish, replaced, self.said.append
        )  # fmt: skip

    def run(self) -> dict[str, str | None]:
        return {record.case: record.reason for record in self.work.run(CASES, 1, show_progress=False)}

    def _prepare(self, case: RawCase | str) -> Prepared:
        assert isinstance(case, RawCase) and case.name in claimed_cases(self.folder)
        self.made.append(case.name)
        return Prepared(case.name)

    def _finish(self, case: Prepared) -> Record:
        return Record(case.name, None, "plans", prepared="by me")


def _meanwhile(patch: pytest.MonkeyPatch, do: Callable[[], object]) -> list[float]:
    """What another job does while this one waits."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        do()

    patch.setattr(preprocessing, "time", SimpleNamespace(sleep=sleep))  # locks sleep too, in their thread
    return waits


def _claim(folder: Path, case: str) -> Lock:
    lock = claimed(folder, case)
    assert lock is not None
    return lock


def test_SharedWork__alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data"
    job = Job(folder)
    assert job.run() == dict.fromkeys("abc") and job.made == ["a", "b", "c"]
    assert [record.case for record in Records(folder).all()] == ["a", "b", "c"]
    assert not (tmp_path / "home" / ".writing").exists()


def test_SharedWork__what_another_job_makes_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, job = tmp_path / "data", Job(tmp_path / "data")
    claims = {name: _claim(folder, name) for name in "bc"}
    Records(folder).append([Record("a", None, "plans", prepared="by another job, after this one had looked")])

    def another() -> None:
        Records(folder).append(
            [Record("b", None, "plans", prepared="now"), Record("c", None, "plans", prepared="now", reason="2-D")]
        )
        for claim in claims.values():
            claim.release()

    waits = _meanwhile(monkeypatch, another)
    assert job.run() == {"a": None, "b": None, "c": "2-D"} and job.made == []
    assert len(waits) == 1 and len(job.said) == 1 and "b in " in job.said[0]  # one sentence for one holder


def test_SharedWork__what_another_job_leaves_behind_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = _claim(tmp_path / "data", "b")
    Records(tmp_path / "data").append([Record("b", None, begun=True)])
    _meanwhile(monkeypatch, claim.release)
    job = Job(tmp_path / "data")
    assert job.run() == dict.fromkeys("abc") and job.made == ["a", "c", "b"]


def test_SharedWork__an_older_record_does_not_count(tmp_path: Path) -> None:
    Records(tmp_path / "data").append([Record("a", None, "plans", prepared="long ago")])
    job = Job(tmp_path / "data")
    Records(tmp_path / "data").append(
        [Record("a", None, "plans", prepared="long ago", orientation="LPS")]
    )  # renewed by another
    job.run()
    assert job.made == ["a", "b", "c"]


def test_SharedWork__what_is_made_with_other_plans_meanwhile_does_not_count(tmp_path: Path) -> None:
    job = Job(tmp_path / "data")
    Records(tmp_path / "data").append([Record("a", None, "other plans", prepared="now")])
    job.run()
    assert job.made == ["a", "b", "c"]


def test_SharedWork__a_volume_that_is_replaced_is_not_to_be_trusted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path / "data", replaced={"b"})
    begun: list[str] = []
    prepare = job.work.prepare

    def watched(case: RawCase | str) -> Prepared:
        begun.extend(record.case for record in Records(tmp_path / "data").all() if record.begun)
        return prepare(case)

    job.work.prepare = watched
    job.run()
    assert begun == ["b"] and not any(record.begun for record in Records(tmp_path / "data").all())


def test_SharedWork__an_error_gives_all_claims_back(tmp_path: Path) -> None:
    job = Job(tmp_path / "data")

    def fails(case: RawCase | str) -> Prepared:
        raise OSError("full")

    job.work.prepare = fails
    with pytest.raises(OSError, match="full"):
        job.run()
    assert not (tmp_path / ".writing").exists()

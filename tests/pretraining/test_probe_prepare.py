from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.prepared import PreparedDatasets, prepare_datasets
from nnssl.pretraining.probe_data import LabelledCases, ProbeData
from nnssl.pretraining.probe_prepare import prepare_probe
from tests.phantoms import write_ct_dataset, write_mr_dataset

PLANS = "nnsslPlans_tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders: 500 unlabelled and preprocessed, 17 labelled, 18 of two channels, 19 of one case, 20 of MR."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        _set_folders(patch, root)
        write_ct_dataset(root / "raw", 500, "Phantom", 3, shape=(20, 32, 32))
        write_ct_dataset(root / "raw", 17, "Organs", 6, shape=(20, 32, 32), labelled=True)
        write_mr_dataset(root / "raw", 18, "Heads", 2, labelled=True)
        write_mr_dataset(root / "raw", 20, "Head", 2, labelled=True, num_channels=1)
        write_ct_dataset(root / "raw", 19, "One", 1, shape=(20, 32, 32), labelled=True)
        plan_and_preprocess([500], preset=PLANS, num_processes=1, show_progress=False)
    return root


@pytest.fixture
def prepared(root: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDatasets:
    _set_folders(monkeypatch, root)
    return prepare_datasets([500], PLANS, "3d_fullres", 1, True)


def _set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(root / name))


def _probe(prepared: PreparedDatasets, dataset: int, every: int | None = None, may: bool = True) -> ProbeData:
    return prepare_probe(dataset, prepared, "3d_fullres", every, 1, may)


def test_prepare_probe__preprocesses_with_the_plans_of_the_run(root: Path, prepared: PreparedDatasets) -> None:
    probe = _probe(prepared, 17)
    assert probe.folder.images == root / "preprocessed" / "Dataset017_Organs" / f"{PLANS}From500_3d_fullres"
    assert probe.folder.spacing == prepared.folders[0].spacing and probe.folder.channels == prepared.folders[0].channels
    assert probe.labels == {"liver": (1,), "spine": (2,)} and probe.values == (0, 1, 2) and probe.ignore is None
    assert len(probe.held_out) == 1 and len(probe.train) == 5 and not set(probe.train) & set(probe.held_out)
    assert json.loads(json.dumps(probe.identity))["dataset"] == "Dataset017_Organs"
    assert _probe(prepared, 17, may=False) == probe  # as the processes of torchrun find it


def test_prepare_probe__fold_0_of_the_splits_is_held_out(root: Path, prepared: PreparedDatasets) -> None:
    cases = [f"case_{i:03d}" for i in range(6)]
    _probe(prepared, 17)
    splits = root / "preprocessed" / "Dataset017_Organs" / "splits_final.json"
    splits.write_text(json.dumps([{"train": cases[:1], "val": cases[1:]}]))
    try:
        probe = _probe(prepared, 17)
    finally:
        splits.unlink()
    assert probe.train == ("case_000",)
    assert len(probe.held_out) == 4 and set(probe.held_out) <= set(cases[1:])  # at most four are scored


def test_prepare_probe__a_dataset_of_the_run_is_taken_as_it_is(root: Path, prepared: PreparedDatasets) -> None:
    own = prepare_datasets([17], PLANS, "3d_fullres", 1, True)
    assert _probe(own, 17).folder is own.folders[0]


def test_prepare_probe__ignore_label_and_regions(root: Path, prepared: PreparedDatasets) -> None:
    _probe(prepared, 17)
    file = root / "raw" / "Dataset017_Organs" / "dataset.json"
    before = file.read_text()
    content = json.loads(before)
    content["labels"] = {"background": 0, "whole": [1, 2], "spine": 2, "ignore": 3}
    content["regions_class_order"] = [1, 2]
    file.write_text(json.dumps(content))
    try:
        probe = _probe(prepared, 17)
    finally:
        file.write_text(before)
    assert probe.labels == {"whole": (1, 2), "spine": (2,)} and probe.ignore == 3 and probe.values == (0, 1, 2)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (500, "Dataset500_Phantom has no labels"),
        (18, "Dataset018_Heads has the channels T1, T2 and Dataset500_Phantom has CT"),
        (20, r"MR \(T1\) in Dataset020_Head, CT in Dataset500_Phantom.*--allow_other_intensities"),
        (19, "Dataset019_One has 1 preprocessed cases"),
        (77, "there is no dataset 77"),
    ],
)
def test_prepare_probe__says_what_is_wrong(prepared: PreparedDatasets, dataset: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _probe(prepared, dataset)


def test_prepare_probe__another_modality_may_be_allowed(
    prepared: PreparedDatasets, caplog: pytest.LogCaptureFixture
) -> None:
    probe = prepare_probe(20, prepared, "3d_fullres", None, 1, True, allow_other_intensities=True)
    assert probe.folder.channels[0].is_ct and len(probe.train) == 1  # it has the plans of the run
    assert caplog.text.count("lets it pass") == 1


def test_prepare_probe__labels_that_were_never_preprocessed_are_missed_before_the_run(
    prepared: PreparedDatasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelledCases, "places", lambda self, case: [])
    with pytest.raises(UserError, match="no preprocessed training case of Dataset017_Organs has a labelled voxel"):
        _probe(prepared, 17)


def test_prepare_probe__wrong_interval(prepared: PreparedDatasets) -> None:
    with pytest.raises(UserError, match="-probe_every takes"):
        _probe(prepared, 17, every=0)


def test_prepare_probe__processes_that_train_together_do_not_preprocess(
    tmp_path: Path, prepared: PreparedDatasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_ct_dataset(tmp_path, 21, "New", 2, shape=(20, 32, 32), labelled=True)
    with pytest.raises(UserError, match="run nnssl_plan_and_preprocess -d 500 21 -p nnsslPlans_tiny first"):
        _probe(prepared, 21, may=False)

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl import check_annotated_labels, propose_annotated_labels
from nnssl.core.errors import UserError
from nnssl.data.label_maps import Contradiction
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset, write_volume

__all__ = ["folders"]  # the fixture

SHAPE = (8, 12, 12)


@pytest.fixture
def organs(folders: Folders) -> Path:
    """Four cases with liver and spine; spine is not drawn in case_001, nothing in case_002."""
    folder = write_ct_dataset(folders.raw, 17, "Organs", 4, shape=SHAPE, labelled=True)
    _redraw(folder, "case_001", lambda label: np.where(label == 2, 0, label))
    _redraw(folder, "case_002", np.zeros_like)
    home = folders.preprocessed / folder.name
    home.mkdir()
    (home / "dataset.json").write_text((folder / "dataset.json").read_text())
    return folder


def _redraw(folder: Path, case: str, change: Any) -> None:
    file = folder / "labelsTr" / f"{case}.nii.gz"
    write_volume(file, change(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))).astype(np.uint8), (3.0, 1.5, 1.5))


def _set(folder: Path, **keys: Any) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def _list_in(folder: Path) -> Any:
    return json.loads((folder / "dataset.json").read_text()).get("annotated_labels")


def test_propose__lists_the_cases_that_lack_a_label(
    folders: Folders, organs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="nnssl"):
        proposal = propose_annotated_labels(17, num_processes=1)
    assert proposal.listed == {"case_001": ["liver"], "case_002": []}
    assert proposal.present == {"liver": 3, "spine": 2} and proposal.files == []
    assert _list_in(organs) is None
    assert '"case_001": ["liver"],\n' in caplog.text
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("a label map does not tell an organ that is not there from one that nobody annotated")


def test_propose__writes_to_both_folders_and_never_over_a_list(folders: Folders, organs: Path) -> None:
    proposal = propose_annotated_labels("17", write=True, num_processes=1)
    home = folders.preprocessed / organs.name
    assert proposal.files == [organs / "dataset.json", home / "dataset.json"]
    assert _list_in(organs) == _list_in(home) == {"case_001": ["liver"], "case_002": []}
    assert check_annotated_labels(17, num_processes=1) == []
    with pytest.raises(UserError, match=r'has "annotated_labels" already.*type: .* check -d Dataset017_Organs --write'):
        propose_annotated_labels(17, write=True, num_processes=1)


def test_propose__a_list_that_is_preprocessed_only_is_not_lost(folders: Folders, organs: Path) -> None:
    home = folders.preprocessed / organs.name
    _set(home, annotated_labels={"case_001": []})
    for call in (lambda: propose_annotated_labels(17, write=True), lambda: check_annotated_labels(17, write=True)):
        with pytest.raises(UserError, match=f"{home / 'dataset.json'}.*copy it.*type: .* check -d Dataset017_Organs$"):
            call()
    assert _list_in(home) == {"case_001": []} and _list_in(organs) is None


def test_propose__regions_and_ignore(folders: Folders, organs: Path) -> None:
    labels = {"background": 0, "both": [1, 2], "spine": 2, "ignore": 3}
    _set(organs, labels=labels, regions_class_order=[1, 2])
    _redraw(organs, "case_000", lambda label: np.where(label == 0, 3, label))
    assert propose_annotated_labels(17, num_processes=1).listed == {"case_001": ["both"], "case_002": []}


def test_check__names_case_label_and_voxels(folders: Folders, organs: Path, caplog: pytest.LogCaptureFixture) -> None:
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(organs / "labelsTr" / "case_000.nii.gz")))
    _set(organs, annotated_labels={"case_000": ["liver"], "case_001": ["liver"], "case_003": []})
    found = check_annotated_labels(17, write=True, num_processes=1)
    assert found[0] == Contradiction("case_000", "spine", int((label == 2).sum()))
    assert [(c.case, c.label) for c in found] == [("case_000", "spine"), ("case_003", "liver"), ("case_003", "spine")]
    assert f"case_000: {found[0].voxels} voxels of spine, which is not listed there" in caplog.text
    assert _list_in(folders.preprocessed / organs.name) is None  # a list that is wrong goes nowhere
    assert "nothing was copied" in caplog.messages[-1] and caplog.messages[-1].endswith("Dataset017_Organs --write")


def test_check__a_region_covers_its_parts(folders: Folders, organs: Path) -> None:
    labels = {"background": 0, "both": [1, 2], "spine": 2}
    _set(organs, labels=labels, regions_class_order=[1, 2], annotated_labels={"case_000": ["both"]})
    _set(folders.preprocessed / organs.name, annotated_labels={"case_000": ["both"]})
    assert check_annotated_labels(17, num_processes=1) == []
    _set(organs, annotated_labels={"case_000": ["spine"]})
    assert [c.label for c in check_annotated_labels(17, num_processes=1)] == ["both"]


def test_check__brings_the_list_to_where_training_reads_it(folders: Folders, organs: Path) -> None:
    given = {"case_001": ["liver"]}
    _set(organs, annotated_labels=given)
    with pytest.raises(UserError, match=r"training reads.*type: nnssl_annotated_labels check -d Dataset017_Organs --w"):
        check_annotated_labels(17, num_processes=1)
    assert check_annotated_labels(17, write=True, num_processes=1) == []
    home = folders.preprocessed / organs.name
    assert _list_in(home) == given
    (home / "dataset.json").unlink()  # not planned yet: planning copies the file
    assert check_annotated_labels(17, num_processes=1) == []
    assert not (home / "dataset.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r'has no "annotated_labels".*type: nnssl_annotated_labels propose -d Dataset017_Organs --write$'),
        ({"case_000": ["livr"]}, r"no label: livr"),
        ({"case_4": []}, r"do not exist: case_4"),
    ],
)
def test_check__wrong_lists(folders: Folders, organs: Path, given: Any, message: str) -> None:
    if given is not None:
        _set(organs, annotated_labels=given)
    with pytest.raises(UserError, match=message):
        check_annotated_labels(17, num_processes=1)


def test_propose__needs_label_maps_that_can_be_read(folders: Folders, organs: Path) -> None:
    write_ct_dataset(folders.raw, 18, "Unlabelled", 1, shape=SHAPE)
    with pytest.raises(UserError, match=r"Dataset018_Unlabelled has no label maps \(labelsTr\)"):
        propose_annotated_labels(18)
    (folders.preprocessed / "Dataset019_Gone").mkdir()
    with pytest.raises(UserError, match=r"Dataset019_Gone is missing: the label maps"):
        propose_annotated_labels(19)
    with pytest.raises(UserError, match=r"-np 0 leaves nobody"):
        propose_annotated_labels(17, num_processes=0)
    (organs / "labelsTr" / "case_000.nii.gz").write_text("no image")
    with pytest.raises(UserError, match=r"case_000.nii.gz cannot be read"):
        propose_annotated_labels(17, num_processes=1)

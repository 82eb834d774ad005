from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.annotated_labels import (
    annotated_labels_of_training,
    raw_cases,
    read_annotated_labels,
    refuse_unknown_cases,
    write_annotated_labels,
)
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset

__all__ = ["folders"]  # the fixture

FILE = Path("dataset.json")
LABELS = {"background": 0, "liver": 1, "spine": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}


def _json(given: Any, labels: dict[str, Any] = LABELS) -> dict[str, Any]:
    return {"labels": labels, "annotated_labels": given}


def test_read_annotated_labels__unlisted_cases_have_everything() -> None:
    annotations = read_annotated_labels(_json({"a": ["spine"], "b": [], "c": ["spine", "liver"]}), FILE)
    assert annotations.of("a") == {"spine"} and annotations.of("b") == frozenset()
    assert annotations.of("c") == annotations.of("d") == {"liver", "spine"}
    assert annotations.partial().keys() == {"a", "b"}
    assert [annotations.heads(case, [1, 2]) for case in "abd"] == [[False, True], [False, False], [True, True]]
    assert annotations.values("a") == {2} and annotations.values("b") == frozenset()
    assert read_annotated_labels({"labels": LABELS}, FILE).listed == {}


def test_read_annotated_labels__regions() -> None:
    annotations = read_annotated_labels(_json({"a": ["core"], "b": ["whole", "tip"]}, REGIONS), FILE)
    heads = [(1, 2, 3), (2, 3), 3]
    assert [annotations.heads(case, heads) for case in "ab"] == [[False, True, False], [True, False, True]]
    assert annotations.values("a") == {2, 3} and annotations.values("b") == {1, 2, 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], r'"annotated_labels" must be an object with a list of labels for each case, as in {"case_1": \["liver'),
        ({"a": "liver", "b": ["liver"], "c": [1]}, r"a, c must have a list of label names"),
        (
            {"a": ["livr"], "b": ["livr", "lung"]},
            r"no label: livr \(in a, b\), lung \(in b\); the labels are liver, sp",
        ),
        ({"a": ["background"]}, r"no label: background \(in a\).*background and ignore are not listed"),
        ({"a": ["liver", "ignore"]}, r"no label: ignore \(in a\)"),
        ({f"{i}": ["x"] for i in range(12)}, r"x \(in 0, 1, 10, 11, 2, 3, 4, 5, 6, 7 and 2 more\)"),
    ],
)
def test_read_annotated_labels__mistakes_are_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_annotated_labels(_json(given), FILE)


def test_refuse_unknown_cases__lists_them() -> None:
    annotations = read_annotated_labels(_json({"case_1": [], "case_01": [], "case_9": []}), FILE)
    refuse_unknown_cases(annotations, {"case_1", "case_01", "case_9"}, FILE)
    with pytest.raises(UserError, match=r"do not exist: case_01, case_9; mend the names.*named like case_1\)"):
        refuse_unknown_cases(annotations, {"case_1", "case_2"}, FILE)


def test_raw_cases__also_those_that_cannot_be_used(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_ct_dataset(folders.raw, 17, "Organs", 3, shape=(4, 6, 6), labelled=True)
    (folder / "labelsTr" / "case_001.nii.gz").unlink()
    assert raw_cases(folder.name) == {"case_000", "case_001", "case_002"}
    assert raw_cases("Dataset018_None") == set()
    monkeypatch.delenv("nnUNet_raw")
    assert raw_cases(folder.name) == set()


def test_annotated_labels_of_training__another_list_in_raw_is_refused(folders: Folders) -> None:
    name = "Dataset017_Organs"
    raw, home = folders.raw / name, folders.preprocessed / name
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    raw.mkdir()
    file = raw / "dataset.json"
    given = {"a": ["liver"]}
    file.write_text(json.dumps(content))  # the list was written into the preprocessed folder alone
    assert annotated_labels_of_training(content | {"annotated_labels": given}, name, home, "a").of("a") == {"liver"}
    for other in ({}, {"annotated_labels": {"a": ["spine"]}}):
        file.write_text(json.dumps(content | {"annotated_labels": given}))
        with pytest.raises(UserError, match=r"another .*training reads; type: nnssl_annotated_labels check -d .* --wr"):
            annotated_labels_of_training(content | other, name, home, "a")
    assert annotated_labels_of_training(content | {"annotated_labels": given}, name, home, "a").of("a") == {"liver"}
    with pytest.raises(UserError, match=f"{file}.* do not exist: a;"):  # the file that is edited
        annotated_labels_of_training(content | {"annotated_labels": given}, name, home, ["b"])
    file.unlink()
    with pytest.raises(UserError, match=f"{home / 'dataset.json'}.* do not exist: a;"):
        annotated_labels_of_training(content | {"annotated_labels": given}, name, home, ["b"])
    assert annotated_labels_of_training(content, name, home, "a").listed == {}


def test_write_annotated_labels__keeps_the_rest_and_its_order(tmp_path: Path) -> None:
    text = json.dumps({"name": "Ä", "labels": {"background": 0, "b": 2, "a": 1}, "annotated_labels": {}, "z": [1, 2],
                       "file_ending": ".nrrd", "channel_names": {"0": "CT"}})  # fmt: skip
    (tmp_path / "one").mkdir()
    file = tmp_path / "one" / "dataset.json"
    file.write_text(text)
    assert write_annotated_labels([tmp_path / "one", tmp_path / "none"], {"case": ["a"]}) == [file]
    expected = json.loads(text) | {"annotated_labels": {"case": ["a"]}}
    written = json.loads(file.read_text())
    assert written == expected
    assert list(written) == list(expected) and list(written["labels"]) == ["background", "b", "a"]
    assert list(file.parent.iterdir()) == [file]

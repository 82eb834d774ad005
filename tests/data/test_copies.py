from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.copies import SPLIT, follow_dataset_json, split_is_missing, take_split, warn_of_split
from nnssl.data.raw import RawDataset

FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["b", "a"]}]


def _dataset(folder: Path, **content: Any) -> RawDataset:
    whole = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **content}
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(whole))
    return RawDataset(folder.name, folder, whole, {}, {}, True)


def _copy(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / "dataset.json").read_text()))


def test_follow_dataset_json__but_its_own_annotated_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = tmp_path / "home"
    home.mkdir()
    follow_dataset_json(_dataset(tmp_path / "raw", annotated_labels={"a": []}), home, False)
    assert _copy(home)["annotated_labels"] == {"a": []}  # the first copy is a copy
    with caplog.at_level(logging.INFO, logger="nnssl"):
        follow_dataset_json(_dataset(tmp_path / "raw", annotated_labels={"b": []}), home, False)
        assert not caplog.records
        new = _dataset(tmp_path / "raw", labels={"background": 0, "liver": 1}, annotated_labels={"b": []}, more=1)
        follow_dataset_json(new, home, False)
    assert _copy(home) == {**new.dataset_json, "annotated_labels": {"a": []}}
    assert "(labels, more)" in caplog.text


def test_follow_dataset_json__labels_that_nnunet_refuses_are_refused_first(tmp_path: Path) -> None:
    raw, home = tmp_path / "raw", tmp_path / "home"
    home.mkdir()
    with pytest.raises(UserError, match=r"dataset\.json.*regions_class_order"):
        follow_dataset_json(_dataset(raw, labels={"background": 0, "both": [1, 2], "one": 1}), home, False)
    assert not list(home.iterdir())


def test_take_split__as_nnunets_planner(tmp_path: Path) -> None:
    raw, home = tmp_path / "raw", tmp_path / "home"
    for folder in (raw, home):
        folder.mkdir()
    take_split(raw, home)
    assert not (home / SPLIT).exists()
    (raw / SPLIT).write_text(json.dumps(FOLDS))
    assert split_is_missing(raw, home)
    take_split(raw, home)
    assert json.loads((home / SPLIT).read_text()) == FOLDS
    (home / SPLIT).write_text(json.dumps([FOLDS[0], {"train": ["c"], "val": ["a", "b"]}, FOLDS[0]]))
    assert not split_is_missing(raw, home)  # the same folds, and one more
    for other in ([FOLDS[1]], [*FOLDS[:1]]):
        (home / SPLIT).write_text(json.dumps(other))
        with pytest.raises(UserError, match=f"raw/{SPLIT} and .*home/{SPLIT}"):
            take_split(raw, home)
    (raw / SPLIT).write_text('{"train": []}')
    with pytest.raises(UserError, match=f"raw/{SPLIT}: must be a list"):
        take_split(raw, home)


def test_warn_of_split__names_cases_that_are_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_split(tmp_path, {"a"})
    (tmp_path / SPLIT).write_text(json.dumps(FOLDS))
    warn_of_split(tmp_path, {"a", "b", "c", "d"})
    assert not caplog.records
    warn_of_split(tmp_path, {"c"})
    assert "2 cases" in caplog.text and "a, b" in caplog.text

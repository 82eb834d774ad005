from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.classification import splits as splits_module
from nnssl.classification.labels import Target
from nnssl.classification.results import few_warning
from nnssl.classification.splits import Fold, folds_of, split_off
from nnssl.core.errors import UserError
from tests.classification.data import target_of


def test_folds_of__stratified_grouped_and_kept(tmp_path: Path) -> None:
    target = target_of([0, 0, 1] * 10, ["no", "yes"], [f"p{i // 2}" for i in range(30)])
    folds, file = folds_of(target, tmp_path, 3, seed=0)
    assert file.name == "splits_grade.json"
    assert sorted(case for fold in folds for case in fold.test) == list(target.cases)
    for fold in folds:
        assert not set(target.groups_of(fold.train)) & set(target.groups_of(fold.test))
        assert 2 <= target.of(fold.test).sum() <= 5
    before = file.read_bytes()
    assert folds_of(target, tmp_path, 5, seed=3)[0] == folds and file.read_bytes() == before


def test_folds_of__stock_splits_are_used_and_not_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = target_of([0, 1] * 3, ["no", "yes"])
    parts = [{"train": ["c00", "c01", "other"], "val": ["c02", "c03"]}, {"train": ["c02", "c03"], "val": ["c00"]}]
    stock = tmp_path / "splits_final.json"
    stock.write_text(json.dumps(parts))
    folds, file = folds_of(target, tmp_path, 5, seed=0)
    assert file == stock and json.loads(stock.read_text()) == parts and len(list(tmp_path.iterdir())) == 1
    assert folds[0].train == ("c00", "c01") and folds[1].test == ("c00",)
    assert "3 of 6 cases" in caplog.text


def test_folds_of__a_given_file_in_place_of_the_datasets(tmp_path: Path) -> None:
    target = target_of([0, 1] * 3, ["no", "yes"])
    given = tmp_path / "mine.json"
    given.write_text(json.dumps([{"train": ["c00", "c01"], "val": ["c02", "c03"]}]))
    (tmp_path / "splits_final.json").write_text("[]")
    folds, file = folds_of(target, tmp_path, 5, 0, given)
    assert file == given and folds[0].test == ("c02", "c03")
    with pytest.raises(UserError, match=r"missing.*leave out -splits"):
        folds_of(target, tmp_path, 5, 0, tmp_path / "other.json")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"train": ["c00"], "val": ["c01"]}], "no training case of the class yes"),
        ([{"train": ["c00", "c01"], "val": ["x"]}], "no test case"),
        ([{"train": ["c00", "c01"], "val": ["c01"]}], "trains on the test case c01"),
        ([{"train": ["c00", "c01"], "val": ["c02"]}] * 2, "tests the case c02 in two folds"),
    ],
)
def test_folds_of__splits_that_do_not_fit(tmp_path: Path, parts: list[dict[str, list[str]]], said: str) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=said):
        folds_of(target_of([0, 1] * 3, ["no", "yes"]), tmp_path, 5, seed=0)


def test_folds_of__a_group_on_both_sides_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["c00", "c01"], "val": ["c02"]}]))
    folds_of(target_of([0, 1, 0], ["no", "yes"], ["p", "q", "p"]), tmp_path, 5, seed=0)
    assert "the group p that it trains on" in caplog.text


def test_folds_of__a_class_with_fewer_cases_or_groups_than_folds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the class yes of grade has 2 cases and there are 3 folds.*-folds 2"):
        folds_of(target_of([0] * 8 + [1] * 2, ["no", "yes"]), tmp_path, 3, seed=0)
    with pytest.raises(UserError, match="has 1 group and"):
        folds_of(target_of([0, 0, 0, 1, 1], ["no", "yes"], ["a", "b", "c", "d", "d"]), tmp_path, 2, seed=0)
    with pytest.raises(UserError, match=r"4 different names in 5 cases.*dates as days or years"):
        folds_of(target_of([0, 1, 2, 3, 3], ["0,5", "0,7", "1,2", "2,0"]), tmp_path, 2, seed=0)
    with pytest.raises(UserError, match="3 cases or groups and there are 5 folds"):
        folds_of(target_of([0.1, 0.2, 0.5]), tmp_path, 5, seed=0)
    assert not list(tmp_path.iterdir())


def test_folds_of__numbers_are_spread_over_the_folds(tmp_path: Path) -> None:
    target = target_of(np.arange(40.0).tolist())
    means = [target.of(fold.test).mean() for fold in folds_of(target, tmp_path, 4, seed=1)[0]]
    assert max(means) - min(means) < 4


def test_split_off__a_fifth_with_every_class(tmp_path: Path) -> None:
    target = target_of([0, 1] * 10, ["no", "yes"])
    train, held_out = split_off(target, target.cases, 0.2, seed=0)
    assert len(train) == 16 and target.of(held_out).tolist().count(1) == 2 and not set(train) & set(held_out)
    few = target_of([0, 0, 1, 1], ["no", "yes"])
    assert len(split_off(few, few.cases, 0.2, seed=0)[1]) == 2
    with pytest.raises(UserError, match="only one case"):
        split_off(few, ["c00", "c01", "c02"], 0.2, seed=0)


def test_folds_of__few_numbers_in_groups(tmp_path: Path) -> None:
    target = target_of(np.arange(11.0).tolist(), groups=[f"p{i % 8}" for i in range(11)])
    folds, _ = folds_of(target, tmp_path, 4, seed=0)
    assert sorted(case for fold in folds for case in fold.test) == list(target.cases)
    assert all(not set(target.groups_of(fold.train)) & set(target.groups_of(fold.test)) for fold in folds)


def test_folds_of__groups_that_cannot_be_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits_module, "splits", lambda *_: None)
    with pytest.raises(UserError, match="cannot be spread over 2 folds"):
        folds_of(target_of([0, 1] * 4, ["no", "yes"]), tmp_path, 2, seed=0)


def test_folds_of__a_target_called_final(tmp_path: Path) -> None:
    target = dataclasses.replace(target_of([0, 1] * 4, ["no", "yes"]), name="Final")
    with pytest.raises(UserError, match="another name"):
        folds_of(target, tmp_path, 2, seed=0)
    assert not list(tmp_path.iterdir())


def test_folds_of__a_file_without_folds_or_with_another_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, file = target_of([0, 1] * 4, ["no", "yes"]), tmp_path / "splits_grade.json"
    file.write_text("[]")
    with pytest.raises(UserError, match="has no fold; delete it"):
        folds_of(target, tmp_path, 2, seed=0)
    file.unlink()
    caplog.set_level("INFO", "nnssl")
    folds_of(target, tmp_path, 2, seed=0)
    assert len(folds_of(target, tmp_path, 4, seed=0)[0]) == 2 and f"2 folds, as {file} has" in caplog.text


@pytest.mark.parametrize(("cases", "groups", "said"), [(7, 7, "test 7 of at least 8 cases"), (8, 8, None),
                                                       (12, 3, "test 3 of at least 8 groups of cases")])  # fmt: skip
def test_few_warning__counts_groups(cases: int, groups: int, said: str | None) -> None:
    names = tuple(f"c{i}" for i in range(cases))
    target = Target("size", names, np.arange(float(cases)), (), tuple(f"g{i % groups}" for i in range(cases)))
    found = few_warning(target, [Fold(0, (), names[:4]), Fold(1, (), names[4:])])
    assert found is None if said is None else said in str(found)

from __future__ import annotations

import logging
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest

from nnssl.benchmarking.subsets import Amount, amounts_of, draw_test_cases, extend_folds, paper_split, subset
from nnssl.benchmarking.workspace import labelled_cases
from nnssl.core.errors import UserError
from nnssl.data.records import write_withdrawn

CASES = [f"case_{i:03d}" for i in range(40)]


@pytest.mark.parametrize("seed", range(5))
def test_subset__nested_and_seeded(seed: int) -> None:
    subsets = [set(subset(CASES, n, seed)) for n in range(1, 41)]
    assert all(len(larger) == len(smaller) + 1 and smaller < larger
               for smaller, larger in pairwise(subsets))  # fmt: skip
    assert subset(CASES[::-1], 7, seed) == subset(CASES, 7, seed) != subset(CASES, 7, seed + 1)
    assert subsets[-1] == set(CASES)


def test_amounts_of__rounds_up_and_takes_at_least_one() -> None:
    assert [a.cases for a in amounts_of(196, [5, 10, 20, 50, 100])] == [10, 20, 40, 98, 196]
    assert [a.cases for a in amounts_of(100, [7, 0.1])] == [1, 7]
    assert amounts_of(12, cases=[4, 2, 4]) == [Amount(2, 100 / 6), Amount(4, 100 / 3)]


def test_amounts_of__the_same_number_of_cases_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert amounts_of(10, [5, 10, 50]) == [Amount(1, 5), Amount(5, 50)]
    assert "10 % of 10 training cases are 1, as many as 5 %; 10 % is skipped" in caplog.text


@pytest.mark.parametrize("wrong", [{"fractions": [0]}, {"fractions": [101]}, {"cases": [0]}, {"cases": [13]}, {}])
def test_amounts_of__mistakes(wrong: dict) -> None:
    with pytest.raises(UserError, match=r"-cases takes|-fractions takes|no amount"):
        amounts_of(12, **wrong)


def test_extend_folds__numbers_stay() -> None:
    first = extend_folds([], CASES, [Amount(4, 10), Amount(40, 100)], seeds=2)
    assert [(f.number, f.cases, f.seed) for f in first] == [(0, 4, 0), (1, 40, 0), (2, 4, 1), (3, 40, 1)]
    more = extend_folds(first, CASES, [Amount(2, 5), Amount(4, 10)], seeds=3)
    assert more[:4] == first and [(f.cases, f.seed) for f in more[4:]] == [(2, 0), (2, 1), (2, 2), (4, 2)]
    assert set(more[4].train) < set(more[0].train)
    assert set(more[1].train) == set(more[3].train) == set(CASES)  # a seed of all cases is one of the training alone


def test_draw_test_cases__always_the_same_and_never_all() -> None:
    assert draw_test_cases(CASES, 20) == draw_test_cases(CASES[::-1], 20) == sorted(draw_test_cases(CASES, 20))
    assert len(draw_test_cases(CASES, 20)) == 8 and len(draw_test_cases(CASES[:3], 1)) == 1
    for percent in (0, 100, 99.9):
        with pytest.raises(UserError, match="-test"):
            draw_test_cases(CASES, percent)


@pytest.mark.parametrize(("total", "sizes"), [(281, (196, 28, 57)), (210, (147, 21, 42)), (10, (7, 1, 2))])
def test_paper_split__sizes_and_order(total: int, sizes: tuple[int, int, int]) -> None:
    cases = [f"case_{i:03d}" for i in range(total)]
    split = paper_split(cases[::-1])
    assert (len(split.training), len(split.validation), len(split.cases)) == sizes
    assert sorted([*split.training, *split.validation, *split.cases]) == cases
    shuffled = list(cases)
    random.seed(100)  # as the authors
    random.shuffle(shuffled)
    assert list(split.order) == shuffled[: sizes[0]] and set(split.validation) == set(
        shuffled[sizes[0] : sum(sizes[:2])]
    )
    folds = extend_folds([], split.training, amounts_of(sizes[0], [5, 10, 20, 50, 100]), 2, split.order)
    own, other = ([f for f in folds if f.seed == seed] for seed in (0, 1))
    expected = [math.ceil(percent / 100 * sizes[0]) for percent in (5, 10, 20, 50, 100)]
    assert [f.cases for f in own] == sorted(set(expected))
    assert all(f.train == split.order[: f.cases] for f in own) and other[-1].train != own[-1].train


def test_paper_split__needs_a_case_of_each_kind() -> None:
    with pytest.raises(UserError, match="-test 70/10/20 needs 10 labelled cases or more, and there are 9"):
        paper_split(CASES[:9])


def test_labelled_cases__that_were_withdrawn_are_no_part_of_a_benchmark(tmp_path: Path) -> None:
    for folder, end in (("data", ".b2nd"), ("data", "_seg.b2nd"), ("data", ".pkl"), ("gt_segmentations", ".nii.gz")):
        (tmp_path / folder).mkdir(exist_ok=True)
        for case in "abc":
            (tmp_path / folder / f"{case}{end}").touch()
    assert labelled_cases(tmp_path, {"data"}, ".nii.gz") == ["a", "b", "c"]
    write_withdrawn(tmp_path, {"b"})
    assert labelled_cases(tmp_path, {"data"}, ".nii.gz") == ["a", "c"]

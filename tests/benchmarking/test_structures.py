from __future__ import annotations

import pytest

from nnssl.benchmarking.case_scores import Structure, read_structures, read_tolerances
from nnssl.core.errors import UserError
from nnssl.data.raw import label_values
from tests.benchmarking.labels import LABELS
from tests.finetuning.plans import small_plans

REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def test_read_structures__labels() -> None:
    found = read_structures({"labels": LABELS}, small_plans(), ["3", "spleen=1.5"])
    assert found == [Structure("liver", 1, 3.0), Structure("spleen", 2, 1.5)]


def test_read_structures__regions_and_no_ignored_voxels() -> None:
    found = read_structures({"labels": REGIONS, "regions_class_order": [1, 2]}, small_plans())
    assert found == [Structure("whole", (1, 2), 2.0), Structure("core", (2,), 2.0)]
    assert label_values({"labels": REGIONS}) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1", "2"], "one number for all structures, not 2; write the others as liver=2"),
        (["kidney=1"], "names kidney, which is no structure of dataset.json; those are liver, spleen"),
        (["liver=1", "liver=2"], "liver twice"),
        (["-1"], "at least 0, not -1"),
        (["liver=wide"], "not wide"),
        (["nan"], "not nan"),
    ],
)
def test_read_tolerances__mistakes(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_tolerances(given, ["liver", "spleen"])

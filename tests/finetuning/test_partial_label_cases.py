from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.annotated_labels import read_annotated_labels
from nnssl.finetuning.partial_labels import AnnotatedCases, refuse_contradictions

LABELS = {"background": 0, "liver": 1, "spine": 2, "ignore": 3}
NOT_IGNORED = (-1, 0, 1, 2)


class Dataset:
    """nnU-Net's, as far as it is asked."""

    def __init__(self, locations: dict[str, dict[Any, list[int]]]) -> None:
        self.identifiers, self.locations = list(locations), locations

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        return case, None, None, {"class_locations": self.locations[case], "spacing": 1}


def _annotations(given: Any, labels: dict[str, Any] = LABELS) -> Any:
    return read_annotated_labels({"labels": labels, "annotated_labels": given}, Path())


def test_annotated_cases__have_foreground_of_what_is_annotated() -> None:
    dataset = Dataset({case: {1: [5], 2: [6], NOT_IGNORED: [5, 6, 7]} for case in "abc"})
    cases = AnnotatedCases(dataset, _annotations({"a": ["liver"], "b": []}), [1, 2])
    cases = pickle.loads(pickle.dumps(cases))  # as workers get it where processes are not forked
    found = [cases[case][3]["class_locations"] for case in cases.identifiers]
    assert found == [{1: [5], 2: [], NOT_IGNORED: [5, 6, 7]}, {1: [], 2: [], NOT_IGNORED: [5, 6, 7]},
                     {1: [5], 2: [6], NOT_IGNORED: [5, 6, 7]}]  # fmt: skip
    assert cases.load_case("a")[0] == "a" and cases["a"][3]["spacing"] == 1
    assert dataset.locations["a"][2] == [6]


def test_annotated_cases__regions() -> None:
    labels = {"background": 0, "both": [1, 2], "spine": 2}
    dataset = Dataset({"a": {(1, 2): [5, 6], 2: [6]}})
    cases = AnnotatedCases(dataset, _annotations({"a": ["spine"]}, labels), [(1, 2), 2])
    assert cases["a"][3]["class_locations"] == {(1, 2): [], 2: [6]}
    refuse_contradictions(_annotations({"a": ["spine"]}, labels), dataset, "D", "P")


def test_refuse_contradictions__names_case_and_label() -> None:
    dataset = Dataset({"a": {1: [5], 2: [], NOT_IGNORED: [5]}, "b": {1: [5], 2: [6], NOT_IGNORED: [5]}})
    refuse_contradictions(_annotations({"a": ["liver"], "elsewhere": []}), dataset, "D", "P")
    with pytest.raises(
        UserError, match=r"label map of b holds spine, which .*list of b in .* D in nnUNet_preprocessed"
    ):
        refuse_contradictions(_annotations({"a": ["liver"], "b": ["liver"]}), dataset, "D", "P")

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.golden.compare import differences, renewed, tensors
from tests.golden.surface import normal_help

_RECORDED = {"loss": 2.0, "rate": 1e-9, "keys": ["a", "b"], "voxels": {"1": 1000, "2": 3}, "count": 7, "none": None}


@pytest.mark.parametrize(
    "change",
    [{"loss": 2.0001}, {"rate": 1.00005e-9}, {"voxels": {"1": 1004, "2": 1}}, {"loss": 2}],
)
def test_differences__rounding_is_none(change: dict[str, Any]) -> None:
    assert differences(_RECORDED, _RECORDED | change) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": 2.0003}, "loss: recorded 2.0, now 2.0003"),
        ({"rate": 1.1e-9}, "rate: recorded 1e-09"),
        ({"loss": float("nan")}, "loss: recorded 2.0, now nan"),
        ({"keys": ["a", "c"]}, "-b"),
        ({"voxels": {"1": 1010, "2": 3}}, "voxels.1"),
        ({"voxels": {"1": 1000}}, "voxels.2 is gone; it was 3"),
        ({"count": 8}, "count: recorded 7, now 8"),
        ({"none": 0.0}, "none: recorded None"),
        ({"more": 1}, "more is new: 1"),
    ],
)
def test_differences__says_what_is_not_as_it_was(change: dict[str, Any], said: str) -> None:
    found = differences(_RECORDED, _RECORDED | change)
    assert any(said in line for line in found), found


def test_renewed__keeps_what_agrees_and_takes_what_does_not() -> None:
    assert renewed({"a": 1.0, "b": 1.0, "gone": 1}, {"a": 1.000001, "b": 1.5, "new": 2}) == {
        "a": 1.0,
        "b": 1.5,
        "new": 2,
    }


def test_tensors__tell_names_shapes_and_types_apart_but_no_order() -> None:
    a, b = torch.zeros(2), torch.zeros(3)
    recorded = tensors({"x.y.a": a, "x.y.b": b})
    assert recorded == tensors({"x.y.b": b, "x.y.a": a})
    others = ({"x.y.a": b, "x.y.b": b}, {"x.y.a": a, "x.y.c": b}, {"x.y.a": a.double(), "x.y.b": b}, {"x.y.a": a})
    for other in others:
        (line,) = differences(recorded, tensors(other))
        assert "x.y.a (" in line  # the names that are there now


def test_normal_help__is_the_same_for_all_versions_of_python() -> None:
    older = "usage: tool [-h]\n            [-o FILE]\n\noptional arguments:\n  -o FILE, --output FILE\n"
    newer = "usage: tool [-h] [-o FILE]\n\noptions:\n  -o, --output FILE\n"
    assert normal_help(older) == normal_help(newer)

from __future__ import annotations

from typing import get_args

import pytest

from nnssl.core.errors import UserError
from nnssl.core.names import Kind, check_name, shown, why_not_a_name

KINDS: tuple[Kind, ...] = get_args(Kind)
NO_COMPONENT = (
    *("", " ", ".", "..", "../x", "a/b", "/etc", "a\\b", "C:\\x", "a\nb", "a\0b", ".hidden", "x" * 201, "ä" * 101),
    *("\udcff", None, 3, ["a"], b"a"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NO_COMPONENT, ids=lambda name: shown(name)[:20])
def test_nothing_but_one_component_is_a_name(name: object, kind: Kind) -> None:
    assert why_not_a_name(name, kind)


@pytest.mark.parametrize(
    "name", ["case_1", "1.2.840.113", "a b", "scan (2) [new]", "Köln_心臓", "x_seg_1", "a__b", "~x", "a:b", "x" * 200]
)
def test_names_of_cases(name: str) -> None:
    assert check_name(name, "case") == name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x_seg", "case"),
        ("Dataset5_X", "dataset"),
        ("Dataset500", "dataset"),
        ("Thorax", "dataset"),
        ("a__b", "plans"),
        ("dataset", "plans"),
        ("Dataset", "plans"),
        ("GT_segmentations", "data_identifier"),
        ("dataset_fingerprint", "plans"),
        ("splits_final", "plans"),
        ("plans", "plans"),
        ("nnUNetPlans_left_out", "plans"),
        ("nnUNetPlans_left_out_part_0_of_2", "plans"),
        ("3d__fullres", "configuration"),
        ("gt_segmentations", "data_identifier"),
        ("nnUNetPlans_3d_fullres_body", "data_identifier"),
        ("nnUNetPlans_3d_fullres_unlabelled", "data_identifier"),
    ],
)
def test_names_that_mean_something_else(name: str, kind: Kind) -> None:
    assert why_not_a_name(name, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Dataset1500_Big", "dataset"), ("Dataset500_Köln (2)", "dataset"), ("nnUNetPlans", "plans"),
     ("dataset", "configuration"), ("dataset", "data_identifier"), ("nnUNetPlans_3d_fullres", "data_identifier")],
)  # fmt: skip
def test_names_that_are_fine(name: str, kind: Kind) -> None:
    assert why_not_a_name(name, kind) is None


def test_the_message_names_the_source_and_stays_on_one_line() -> None:
    with pytest.raises(UserError) as error:
        check_name("a\n/b", "case", "dataset.json")
    assert "dataset.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind", "fine"),
    [("all", "fold", True), ("0", "fold", True), ("12", "fold", True), ("01", "fold", False), ("x", "fold", False),
     ("-1", "fold", False), ("٣", "fold", False), ("9" * 99, "fold", False), ("nnUNetTrainer", "trainer", True),
     ("os.system", "trainer", False), ("a__b", "trainer", False), ("checkpoint_final.pth", "file", True),
     ("Dataset٣٣٣_X", "dataset", False)],
)  # fmt: skip
def test_folds_trainers_and_files(name: str, kind: Kind, fine: bool) -> None:
    assert (why_not_a_name(name, kind) is None) == fine

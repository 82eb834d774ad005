from __future__ import annotations

import re
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.guard import Images, check_datasets, check_images, named
from tests.pretrainings import CT_JSON, tiny_plans

GIVEN, OWN = "the pretraining on Dataset500_Source", "Dataset017_Target"


def _check(given: list[str], own: list[str], **options: Any) -> list[str]:
    return check_images(Images(GIVEN, given), Images(OWN, own), **options)


@pytest.mark.parametrize(
    ("given", "own"),
    [(["CT"], ["ct"]), (["CT"], ["CTA"]), (["T1"], ["MRI"]), (["MR"], ["T1", "T2"]), (["image"], ["Image"]),
     (["T1w", "PET"], ["T1", "SUV"])],
)  # fmt: skip
def test_check_images__the_same_modality_needs_no_words(given: list[str], own: list[str]) -> None:
    assert _check(given, own) == []


@pytest.mark.parametrize(
    ("given", "own", "said"),
    [
        (["CT"], ["T1"], f"MR (T1) in {OWN}, CT in {GIVEN}"),
        (["T1"], ["ct"], f"ct in {OWN}, MR (T1) in {GIVEN}"),
        (["T1"], ["PET"], f"PET in {OWN}"),
        (["MR"], ["T1", "CT"], f"differ: CT in {OWN}, MR in"),
        (["T1", "CT"], ["T1", "US"], f"ultrasound (US) in {OWN}, CT in"),
        (["T1", "CT"], ["CT", "T2"], f"CT in {OWN}, MR (T1) in {GIVEN} and MR (T2) in {OWN}, CT in {GIVEN}"),
    ],
)
def test_check_images__another_one_is_refused_or_allowed(given: list[str], own: list[str], said: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(said)}.*channel_names.*add --allow_other_intensities"):
        _check(given, own)
    (warning,) = _check(given, own, allow=True)
    assert said in warning and "--allow_other_intensities" in warning
    with pytest.raises(UserError, match="another way"):
        _check(given, own, way="another way")


@pytest.mark.parametrize(
    ("given", "own", "said"),
    [
        (["CT"], ["image"], f"image of {OWN}, CT of {GIVEN}"),
        (["noNorm"], ["T1"], f"T1 of {OWN}, noNorm of {GIVEN}"),
        (["CT"], [], f"modality of {OWN} is not known"),
        ([], ["CT"], f"modality of {GIVEN} is not known"),
        ([], [], f"modality of {OWN} is not known"),
        (["T1"], ["FLAIR"], "FLAIR after T1"),
    ],
)
def test_check_images__what_is_not_known_is_a_warning(given: list[str], own: list[str], said: str) -> None:
    (warning,) = _check(given, own)
    assert said in warning
    assert _check(given, own, allow=True) == [warning]


def test_check_images__plans_normalise_by_nnunets_own_rule() -> None:
    with pytest.raises(UserError, match=r"uses ZScoreNormalization for CTA.*CTNormalization for CT.*--allow_other"):
        _check(["CT"], ["CTA"], by_scheme=True)
    (warning,) = _check(["CT"], ["CTA"], by_scheme=True, allow=True)
    assert "CTNormalization" in warning


def test_check_images__numbers_of_channels() -> None:
    with pytest.raises(UserError, match=f"read 2 channels .*{OWN} has 1"):
        _check(["T1", "T2"], ["T1"], allow=True)
    with pytest.raises(UserError, match=f"{OWN} has the channels T1, T2 and {GIVEN} has MR"):
        check_datasets(Images(GIVEN, ["MR"]), Images(OWN, ["T1", "T2"]), allow=True)
    assert check_datasets(Images(GIVEN, ["T1", "T2"]), Images(OWN, ["T1", "T2"])) == []


def test_check_images__orientation_spacing_and_axes_in_one_sentence_each() -> None:
    plans = tiny_plans() | {"transpose_forward": [1, 0, 2]}
    given = Images.of_pretraining(plans, "3d_fullres", CT_JSON, "LPS")
    cases = {f"case_{i:02d}": "RAS" for i in range(12)} | {"same": "LPS", "unknown": None}
    voxels = {name: (7.0 if i else 5.9, 1.5, 1.5) for i, name in enumerate(cases)}
    own = Images(OWN, ["CT"], orientations=cases, voxels=voxels, spacing=[3.0, 1.5, 1.9], axes=[0, 1, 2])
    spacing, coarse, axes, oriented = check_images(given, own, advice="do this")
    assert "3 x 1.5 x 1.9 mm" in spacing and "3 x 1.5 x 1.5 mm" in spacing and spacing.endswith("do this")
    assert "case_01 (7 x 1.5 x 1.5 mm)" in coarse and "case_00" not in coarse and "(13 of 14)" in coarse
    assert "[0, 1, 2]" in axes and "[1, 0, 2]" in axes and axes.endswith("do this")
    assert "case_09 (RAS), ... (12 of 14)" in oriented and "case_10" not in oriented
    assert "DICOMOrient(image, 'LPS')" in oriented and "NibabelIOWithReorient" in oriented
    near = Images(OWN, orientations={"a": "LPS"}, voxels={"a": (6.0, 3.0, 3.0)}, spacing=[3.5, 1.5, 1.5])
    assert check_images(given, near) == []
    assert check_images(Images(GIVEN, ["CT"]), own) == []  # a side that says nothing more


def test_named__one_of_one() -> None:
    assert named({"a": "RAS"}, 1) == "a (RAS)" and named({"a": "RAS"}, 3) == "a (RAS) (1 of 3)"

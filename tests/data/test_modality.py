from __future__ import annotations

import pytest

from nnssl.data.guard import modality, mr_sequence, names_of_channels


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "CT") for name in ("CT", "ct", "CTA", "ct_arterial", "NCCT", "CBCT (head)")),
        *((name, "MR") for name in ("T1", "T1w", "t1ce", "T2-FLAIR", "T2*", "MRI", "mr_t1", "ADC", "hbv", "MRA")),
        *((name, "PET") for name in ("PET", "FDG-PET", "SUV")),
        ("US", "ultrasound"),
        ("X-Ray", "X-ray"),
        ("rgb_to_0_1", "photograph"),
        # what tells nothing, or two things
        *((name, None) for name in ("", "image", "channel_0", "0", "noNorm", "zscore", "rescale_to_0_1", "PET-CT",
                                    "actor", "t10", "fused_ct_mr")),
    ],
)  # fmt: skip
def test_modality__by_words_of_the_name(name: str, kind: str | None) -> None:
    assert modality(name) == kind


def test_mr_sequence() -> None:
    named = {"T2-FLAIR": "FLAIR", "t1ce": "T1", "T2w": "T2", "ADC": "ADC", "MRI": None}
    assert {name: mr_sequence(name) for name in named} == named


def test_names_of_channels__of_any_content() -> None:
    assert names_of_channels({"channel_names": {"0": "T1", "1": 2}}) == ("T1", "2")
    assert names_of_channels({"modality": {"0": "CT"}}) == ("CT",)
    assert names_of_channels({"channel_names": ["CT"]}) == names_of_channels({}) == ()

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.core.files import checked, read_json, write_json
from nnssl.core.plans_schema import PlansFile
from nnssl.data.presets import presets
from tests.pretrainings import tiny_plans


def _older() -> dict[str, Any]:
    """Plans as nnU-Net 2.0 to 2.2 wrote them: the network in the configuration itself."""
    plans = tiny_plans()
    configuration = plans["configurations"]["3d_fullres"]
    del configuration["architecture"]
    configuration |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 32, "unet_max_num_features": 320,
                      "n_conv_per_stage_encoder": [2, 2], "n_conv_per_stage_decoder": [2],
                      "num_pool_per_axis": [1, 1, 1], "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
                      "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]]}  # fmt: skip
    return plans


def _without_foreground() -> dict[str, Any]:
    """nnU-Net writes NaN for channels that have no foreground; MR is normalised without these numbers."""
    plans = tiny_plans(normalization_schemes=["ZScoreNormalization"])
    plans["foreground_intensity_properties_per_channel"]["0"] = dict.fromkeys(
        ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), float("nan")
    )
    return plans


def _cascade() -> dict[str, Any]:
    plans = tiny_plans()
    plans["configurations"] |= {
        "2d": {"inherits_from": "3d_fullres", "patch_size": [16, 16], "spacing": [1.5, 1.5]},
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    return plans


@pytest.mark.parametrize("plans", [tiny_plans(), _older(), _without_foreground(), _cascade()], ids=range(4))
def test_plans_that_fit(plans: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "p.json", plans)
    found = read_json(tmp_path / "p.json", PlansFile)
    assert found.keys() == plans.keys() and found["configurations"] == plans["configurations"]
    assert checked(plans, PlansFile, "p") is plans


def test_presets_are_no_plans_until_they_are_filled_in() -> None:
    for name, file in presets().items():
        with pytest.raises(UserError, match="dataset_name"):
            read_json(file, PlansFile)
        assert name == read_json(file)["plans_name"]


def test_a_circle_of_configurations_is_no_endless_loop() -> None:
    plans = _cascade()
    plans["configurations"]["3d_fullres"] = {"inherits_from": "3d_lowres"}
    with pytest.raises(UserError, match=r"(?s)3d_lowres inherits.*3d_cascade_fullres inherits"):
        checked(plans, PlansFile, "p")

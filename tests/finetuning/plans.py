"""Complete plans of small networks, as prediction needs them."""

from __future__ import annotations

from typing import Any

from tests.networks.helpers import fpn_configuration, unet_configuration

CT_WINDOW = {"mean": 40.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 700.0}


def small_plans(
    kind: str = "PlainConvUNet",
    dataset: str = "Dataset017_Target",
    name: str = "nnUNetPlans",
    channels: int = 1,
    scheme: str = "CTNormalization",
    features: tuple[int, ...] = (4, 6, 8),
    **configuration: Any,
) -> dict[str, Any]:
    """Plans with one configuration, 3d_fullres; further arguments replace its entries."""
    if kind == "FPN3dUNet":
        made = fpn_configuration(num_scales=3, base_channels=4)
    else:
        made = unet_configuration(kind, [[1, 1, 1], [1, 2, 2], [2, 2, 2]][: len(features)], list(features))
    made |= {
        "data_identifier": f"{name}_3d_fullres",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": [scheme] * channels,
        "use_mask_for_norm": [False] * channels,
    }
    return {
        "dataset_name": dataset,
        "plans_name": name,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": made | configuration},
        "foreground_intensity_properties_per_channel": {str(c): dict(CT_WINDOW) for c in range(channels)},
        "label_manager": "LabelManager",
    }

"""Finished pretrainings that were never trained: random weights in a checkpoint as the loop writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.files import FINAL, save_checkpoint
from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.methods.options import to_plain
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.folder import run_folder
from nnssl.pretraining.setup import Setup, resolve_sizes

CT_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}


def tiny_plans(name: str = "nnsslPlans_tiny", **changes: Any) -> dict[str, Any]:
    """The preset for two cores, filled in for one CT channel; `changes` are entries of its configuration."""
    plans = json.loads(presets()["nnsslPlans_tiny"].read_text())
    plans.update(plans_name=name, dataset_name="Dataset500_Source", image_reader_writer="SimpleITKIO",
                 transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2],
                 original_median_spacing_after_transp=[3.0, 1.5, 1.5],
                 original_median_shape_after_transp=[24, 40, 40])  # fmt: skip
    window = {"mean": 40.0, "median": 40.0, "std": 100.0, "min": -900.0, "max": 500.0, "percentile_00_5": -800.0,
              "percentile_99_5": 400.0}  # fmt: skip
    plans["foreground_intensity_properties_per_channel"] = {"0": window}
    filled = {"spacing": [3.0, 1.5, 1.5], "patch_size": [16, 16, 16], "normalization_schemes": ["CTNormalization"],
              "use_mask_for_norm": [False], "median_image_size_in_voxels": [24.0, 40.0, 40.0],
              "data_identifier": f"{name}_3d_fullres"}  # fmt: skip
    plans["configurations"]["3d_fullres"].update({**filled, **changes})
    return plans


def checkpoint_content(
    plans: dict[str, Any], dataset_json: dict[str, Any], method: str = "vox2vec", configuration: str = "3d_fullres",
    orientation: str | None = "LPS", seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """What the loop saves, as far as others read it; no value of the network is the initial one."""
    resolved = resolve_configuration(plans, configuration)
    config = resolve_sizes(get_method(method).config_class(), resolved, 1)
    nobody = Cases.of([], [])
    torch.manual_seed(seed)
    setup = Setup(method, config, plans, dataset_json, {}, configuration, "all", nobody, nobody, Path(),
                  resolved=resolved)  # fmt: skip
    built = setup.build_method()
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return {"method": method, "method_state": built.state_dict(), "config": to_plain(config), "plans": plans,
            "configuration": configuration, "dataset_json": dataset_json, "orientation": orientation}  # fmt: skip


def finish_pretraining(
    results: Path, dataset: str, plans: dict[str, Any], dataset_json: dict[str, Any], fold: str = "all", **options: Any
) -> Path:
    """Write a final checkpoint into the folder that a run of its kind has; returns that folder."""
    content = checkpoint_content(plans, dataset_json, **options)
    folder = run_folder(results, dataset, content["method"], plans["plans_name"], content["configuration"], fold)
    folder.mkdir(parents=True)
    save_checkpoint(content, folder / FINAL)
    return folder


def write_pretraining(results: Path, plans: dict[str, Any], **options: Any) -> Path:
    """As `finish_pretraining`, for the dataset and the channels that the plans name; returns the checkpoint."""
    schemes = resolve_configuration(plans, options.get("configuration", "3d_fullres"))["normalization_schemes"]
    channels = {str(i): "CT" if "CT" in scheme else "MR" for i, scheme in enumerate(schemes)}
    return (
        finish_pretraining(results, plans["dataset_name"], plans, CT_JSON | {"channel_names": channels}, **options)
        / FINAL
    )

"""Checkpoints of finished pretrainings, without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nnssl.methods.options import to_plain
from nnssl.methods.registry import get_method
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.checkpoint import FINAL, save_checkpoint
from nnssl.pretraining.setup import resolve_sizes, run_folder


def write_pretraining(
    results: Path,
    plans: dict[str, Any],
    configuration: str = "3d_fullres",
    method: str = "vox2vec",
    orientation: str | None = "LPS",
    fold: str = "all",
    seed: int = 0,
) -> Path:
    """`checkpoint_final.pth` of a run with these plans whose weights are not those of any initialisation."""
    torch.manual_seed(seed)
    method_class = get_method(method)
    config = resolve_sizes(method_class.config_class(), plans, configuration, 1)
    module = method_class(build_backbone(plans, configuration, method_class.levels), config)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    dataset = plans["dataset_name"]
    folder = run_folder(results, dataset, method, plans["plans_name"], configuration, fold)
    folder.mkdir(parents=True)
    content = {
        "method": method,
        "method_state": module.state_dict(),
        "config": to_plain(config),
        "plans": plans,
        "configuration": configuration,
        "dataset_json": {"channel_names": _channels(plans, configuration), "labels": {"background": 0}},
        "orientation": orientation,
    }
    save_checkpoint(content, folder / FINAL)
    return folder / FINAL


def _channels(plans: dict[str, Any], configuration: str) -> dict[str, str]:
    schemes = resolve_configuration(plans, configuration)["normalization_schemes"]
    return {str(i): "CT" if "CT" in scheme else "MR" for i, scheme in enumerate(schemes)}

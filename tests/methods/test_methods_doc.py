"""The tables of docs/methods.md say what the configurations and the presets say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.data.presets import presets
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.pretraining.setup import resolve_sizes

DOCUMENT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
PRESETS = {"vox2vec": "vox2vec", "voco": "voco", "pimpic": "pimpic", "alice": "alice_vit", "mae": "alice_vit",
           "lapn": "lapn", "sam": "sam", "simclr": "tiny", "unet_mae": "tiny",
           "volumefusion": "tiny"}  # fmt: skip
ROWS = ("patch", "batch", "steps", "precision", "clip", "optimiser", "learning rate", "schedule")


def _table(heading: str) -> dict[str, list[str]]:
    """Cells of a section's table by the first of each row, without the header."""
    section = DOCUMENT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows[2:]}


def _here(method: str) -> dict[str, str]:
    """The column `here` of a method's table."""
    plans = json.loads(presets()[f"nnsslPlans_{PRESETS[method]}"].read_text())
    config: Any = resolve_sizes(get_method(method).config_class(), resolve_configuration(plans, "3d_fullres"), 1)
    momentum = f"momentum {config.momentum}"
    kind = {"sgd": momentum, "nesterov": momentum, "adam": f"betas {_list(config.betas)}",
            "adamw": f"betas {_list(config.betas)}"}[config.optimiser]  # fmt: skip
    optimiser = f"{config.optimiser}, {kind}, decay {config.weight_decay}" + (", amsgrad" if config.amsgrad else "")
    return {
        "patch": _list(config.patch_size),
        "batch": str(config.batch_size),
        "steps": f"{config.num_epochs * config.steps_per_epoch:,}",
        "precision": config.precision,
        "clip": "none" if config.gradient_clip is None else str(config.gradient_clip),
        "optimiser": optimiser,
        "learning rate": str(config.learning_rate),
        "schedule": config.schedule + (f", warm-up {config.warmup_steps:,}" if config.warmup_steps else ""),
    }


def _list(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _stages(name: str) -> str:
    """Channels and cells of a preset's levels, finest first."""
    plans = json.loads(presets()[name].read_text())
    method = next((m for m, preset in PRESETS.items() if f"nnsslPlans_{preset}" == name), "alice")
    configuration = plans["configurations"]["3d_fullres"]
    filled = {**configuration, "normalization_schemes": configuration["normalization_schemes"] or ["CTNormalization"]}
    with torch.device("meta"):
        backbone = build_backbone({"configurations": {"3d_fullres": filled}}, "3d_fullres", get_method(method).levels)
    sizes = (
        "x".join(str(n // s) for n, s in zip(filled["patch_size"], stride, strict=True)) for stride in backbone.strides
    )
    return ", ".join(f"{channels} @ {size}" for channels, size in zip(backbone.channels, sizes, strict=True))


@pytest.mark.parametrize("method", method_names())
def test_table__says_what_the_configuration_says(method: str) -> None:
    table = _table(method)
    assert tuple(table) == ROWS
    assert {row: cells[2] for row, cells in table.items()} == _here(method)
    assert all(len(cells) == 4 for cells in table.values())
    differing = [row for row, cells in table.items() if cells[2] not in cells[:2] and cells[3] in ("", "-")]
    assert not differing, "a difference has a reason"


def test_stages__are_those_of_the_presets_networks() -> None:
    pretraining = [name for name in presets() if not name.startswith("nnsslPlans_lapn_")]
    assert {name: cells[0] for name, cells in _table("Stage sizes").items()} == {n: _stages(n) for n in pretraining}

"""What a pretraining leaves: its options, steps, weights and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.golden import inside
from tests.golden.compare import norms, plain, tensors
from tests.golden.world import World

# Of a row of metrics.jsonl: what the machine has a share in.
_OF_THE_MACHINE = {"memory_gib", "samples_per_second", "data_wait", "seconds", "wall_seconds", "device_hours",
                   "energy_kwh", "total_device_hours", "total_energy_kwh", "probe_share"}  # fmt: skip
_OPTIMISER = ("lr", "betas", "eps", "weight_decay", "amsgrad", "momentum", "nesterov", "dampening")


def method(world: World, name: str) -> dict[str, Any]:
    """Three seeded steps of a method, each an epoch with a validation, and all that is left of them."""
    folder = world.run(name)
    content = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stock = torch.load(folder / "nnunet_weights.pth", weights_only=True)
    return {
        "default_options": inside.default_options(name),
        "folder": str(folder.relative_to(world.root / "results" / name)),
        "files": sorted(file.name for file in folder.iterdir()),
        "metrics_keys": sorted(rows[0]),
        "rows": [plain({k: v for k, v in row.items() if k not in _OF_THE_MACHINE}) for row in rows],
        "config_keys": sorted(_read(folder, "config.json")),
        "summary_keys": sorted(_read(folder, "summary.json")),
        "checkpoint_keys": keys_of(content),
        "options_of_checkpoint": plain(content["config"]),
        "state": tensors(content["method_state"]),
        "norms": plain(norms(content["method_state"])),
        "optimiser": optimiser(content["optimiser_state"]),
        "stock_weights": {"keys": sorted(stock), "state": tensors(stock["network_weights"])},
    }


def probed(world: World) -> dict[str, Any]:
    """A pretraining that is probed on a labelled dataset: names of what that adds."""

    def make() -> Path:
        import nnssl

        plans = world.plans("vox2vec")
        options = ["num_epochs=2", "steps_per_epoch=2", "val_steps_per_epoch=1", "voxels_per_pair=24"]
        with world.environment("probed"):
            return nnssl.pretrain([500], "vox2vec", plans=plans, device="cpu", num_processes=1, options=options,
                                  probe=17, probe_every=1)  # fmt: skip

    folder = world.once("probed", make)
    content = torch.load(folder / "checkpoint_best.pth", weights_only=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": sorted(file.name for file in folder.iterdir()),
        "metrics_keys": [sorted(row) for row in rows],
        "checkpoint_keys": keys_of(content),
        "probe_state_keys": keys_of(content["probe_state"]),
        "config": _read(folder, "config.json")["probe"] is not None,
    }


def keys_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a file with the types of the values; of a dictionary that the package names the keys of, its keys."""
    named = ("train_means", "cost_state", "probe_state", "optimiser_state", "network", "health_state")
    return {key: sorted(map(str, value)) if key in named and isinstance(value, dict) else _type(value)
            for key, value in content.items()}  # fmt: skip


def optimiser(state: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of every group, and the norm of each of the moments over all parameters."""
    moments: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            if name != "step" and value is not None:
                moments.setdefault(name, {})[f"all.{number}"] = value
    groups = [{key: group[key] for key in _OPTIMISER if key in group} | {"tensors": len(group["params"])}
              for group in state["param_groups"]]  # fmt: skip
    return plain({"groups": groups, "moments": {name: norms(values)["all"] for name, values in moments.items()}})


def _type(value: Any) -> str:
    return "dict" if isinstance(value, dict) else type(value).__name__


def _read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content

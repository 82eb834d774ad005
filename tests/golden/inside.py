"""All that the golden net knows of the inside of the package; a move in there is a change here and nowhere else."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from nnssl.methods.registry import get_method, method_names

__all__ = ["called_by", "default_options", "method_names", "preset_files"]

# Where a command finds the function that it calls, if that is not the public name in `nnssl`.
_ELSEWHERE = {
    "nnssl_plan_and_preprocess": ("nnssl.data.plan_and_preprocess", "plan_and_preprocess"),
    "nnssl_demo": ("nnssl.demo", "run_demo"),
}
_PLANS = Path(__file__).parents[2] / "plans"


def default_options(method: str) -> dict[str, Any]:
    """Hyper-parameters of a method with their defaults, as JSON has them."""
    from dataclasses import asdict

    options: dict[str, Any] = json.loads(json.dumps(asdict(get_method(method).config_class())))
    return options


def called_by(command: str, function: str) -> tuple[Any, str]:
    """Module and name under which a command looks up the function that it calls."""
    module, name = _ELSEWHERE.get(command, ("nnssl", function))
    return import_module(module), name


def preset_files() -> dict[str, Path]:
    """Plans that `-p` takes without a dataset, by name."""
    return {file.stem: file for file in sorted(_PLANS.glob("*.json"))}

"""Files of `nnssl_export`, read as the checkpoint of the run that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.files import checked, read_json
from nnssl.core.own_files import ExchangedFile, ExportedFile

ADAPTATION_PLAN = "nnssl_adaptation_plan"  # by which nnU-Net knows a checkpoint of the exchange format
SAFETENSORS = ".safetensors"
WEIGHTS = f"model{SAFETENSORS}"
CONFIG = "config.json"  # beside the weights
NETWORK, HEADS = "backbone.network.", "heads."  # of a checkpoint's state: the plans' network, a pixel encoder's heads
_COPY = "take another copy of the folder, with all of its files"


def read_exchanged(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Entries of a run's checkpoint in one of the exchange format (`nnssl.interchange.exchange`).

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        UserError: another program wrote it, or something is missing.
    """
    arguments = content.get("init_args")
    if not isinstance(arguments, dict) or "method" not in arguments:
        raise UserError(f"{path} holds weights of another program; bring them in with nnssl_import {path} -o "
                        f"Dataset900_NAME, and use the run that it writes")  # fmt: skip
    checked(content, ExchangedFile, path, _COPY)
    state = {f"{NETWORK}{name}": tensor for name, tensor in content["network_weights"].items()}
    return {**arguments, "method_state": {**state, **content.get("heads", {})}}


def read_safetensors(path: Path) -> dict[str, Any]:
    """Entries of a run's checkpoint in a file of safetensors and the `config.json` beside it.

    Raises:
        UserError: the package is not installed, or a file is missing or damaged.
    """
    fix = f"{_COPY}, or if another program wrote it type: nnssl_import {path} -o Dataset900_NAME"
    config = read_json(path.with_name(CONFIG), ExportedFile, fix)
    try:
        with needed_safetensors().safe_open(path, framework="pt") as file:
            names: Mapping[str, str] = file.metadata() or {}
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:  # the package has an exception of its own for every kind of damage
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); {_COPY}") from error
    aliases = {alias: name for alias, name in names.items() if name in state}
    return {**config["run"], "method_state": state | {alias: state[name] for alias, name in aliases.items()}}


def needed_safetensors() -> ModuleType:
    """The package; raises UserError where it is not installed."""
    try:
        import safetensors
    except ImportError as error:
        raise UserError("safetensors is not installed; run pip install 'nnssl[interchange]', or pip install "
                        "safetensors") from error  # fmt: skip
    return safetensors

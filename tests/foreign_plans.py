"""Plans, checkpoints and files of somebody who wants to run a command."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

HARM = "os.system"
SAID = rf"'{HARM}' as nonlin.*export nnssl_trusted_modules="


def with_command(plans: dict[str, Any], marker: Path) -> dict[str, Any]:
    """Plans whose networks make a file when nnU-Net builds them; those of this package hold what it never looks up."""
    plans = deepcopy(plans)
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            give_command(configuration, marker)
    return plans


def give_command(configuration: dict[str, Any], marker: Path) -> dict[str, Any]:
    """The same for one configuration, which is changed."""
    architecture = configuration["architecture"]
    architecture["arch_kwargs"] |= {"nonlin": HARM, "nonlin_kwargs": {"command": f"touch {marker}"}}
    architecture["_kw_requires_import"] = [*{*architecture["_kw_requires_import"], "nonlin"}]
    return configuration


def give_command_to_checkpoint(path: Path, marker: Path) -> Path:
    """The same for a checkpoint of `nnssl_pretrain`, which still loads with weights_only=True."""
    content = torch.load(path, weights_only=True)
    content["plans"] = with_command(content["plans"], marker)
    torch.save(content, path)
    return path


class Command:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def hide_command_in(path: Path, marker: Path) -> Path:
    """Add an entry to a checkpoint of nnU-Net that runs when the file is opened with weights_only=False."""
    content = torch.load(path, weights_only=False)
    torch.save({**content, "logging": Command(marker)}, path)
    return path

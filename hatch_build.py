"""Build hook: the start-up line that lets nnU-Net find our trainers goes to the top of site-packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Python reads the .pth files of site-packages in the order of their names: this one after `_nnssl.pth`, in which
# hatchling keeps the path of an editable install.
START_UP = "nnssl_trainers.pth"


class StartUpHook(BuildHookInterface):  # type: ignore[misc]
    """Places the start-up file; as a listed file of the distribution, so that pip takes it away again."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file to the wheel that hatchling is about to build, whether "standard" or "editable"."""
        file = str(Path(self.root) / START_UP)
        build_data["force_include"][file] = START_UP
        # hatchling looks here instead, for an editable install, as soon as anything is in it
        build_data["force_include_editable"][file] = START_UP

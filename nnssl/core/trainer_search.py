"""nnU-Net's search for trainers, in processes that have modules which load others when they are looked at."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def find_trainer(name: str) -> Any:
    """The class that nnU-Net finds under this name.

    nnU-Net asks all loaded modules for their files. A module of the lazy kind imports others then, and the search ends
    with a RuntimeError; here all are asked before.

    Raises:
        RuntimeError: there is none. What a module of the folders in nnUNet_extTrainer raises passes too.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    _ask_modules()
    return recursive_find_trainer_class_by_name(name)


def _ask_modules() -> None:
    asked: set[str] = set()
    while new := sys.modules.keys() - asked:
        for name in new:
            for attribute in ("__file__", "__path__"):
                with contextlib.suppress(Exception):  # of any kind; the module is not ours
                    getattr(sys.modules.get(name), attribute, None)
        asked |= new

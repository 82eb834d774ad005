"""Checkpoints: tensors and plain types only, read with `weights_only=True`, replaced in one piece."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nnssl.errors import UserError

FORMAT = 1
LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
BEST = "checkpoint_best.pth"  # by the online probe
_SUFFIX = ".writing"


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, and rename it: `path` is the old or the new one.

    Raises:
        UserError: no space is left; the previous checkpoint stays as it is.
    """
    temporary = path.with_name(path.name + _SUFFIX)
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer wraps the OSError of a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        if shutil.disk_usage(path.parent).free < 2**26 or getattr(error, "errno", None) == 28:
            raise UserError(f"no space left for {path}; the previous checkpoint is untouched: free some space and "
                            f"continue with --c") from error  # fmt: skip
        raise
    _sync_folder(path.parent)


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Content of a checkpoint on the CPU.

    Args:
        path: of the file.
        mapped: leave the tensors on the disk until they are used, for whoever reads what is said of many runs.

    Raises:
        UserError: the file does not exist, or is not a checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpickling errors come as many types, all of them mean: not our file
        raise UserError(f"{path} is no checkpoint of nnssl, or it is damaged; give a checkpoint_*.pth that "
                        f"nnssl_pretrain wrote (a model that nnU-Net trained is none)") from error  # fmt: skip
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of nnssl (format {FORMAT}); give a checkpoint_*.pth that "
                        f"nnssl_pretrain wrote")  # fmt: skip
    return content


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written."""
    for file in folder.glob(f"*{_SUFFIX}"):
        file.unlink(missing_ok=True)


def package_versions() -> dict[str, str]:
    """Versions of what a run depends on; a package that is not installed is left out."""
    found = {}
    for name in ("nnssl", "nnunetv2", "torch", "numpy", "blosc2", "dynamic-network-architectures"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Checkpoints: tensors and plain types only, read with `weights_only=True`, replaced in one piece."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, cast

import torch

from nnssl.checkpoints.exported import ADAPTATION_PLAN, SAFETENSORS, read_exchanged, read_safetensors
from nnssl.checkpoints.nnunet_model import nnunet_content
from nnssl.core.errors import UserError
from nnssl.core.files import checked, replacing
from nnssl.core.own_files import CheckpointFile, ResumableFile
from nnssl.core.system import unreadable, why
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration
from nnssl.networks.pyramid import Levels
from nnssl.networks.trusted import trusted_network

FORMAT = 1
LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
BEST = "checkpoint_best.pth"  # by the online probe
_PUBLIC = "for weights of other programs type nnssl_import FILE -o Dataset900_NAME"
NNUNET_WEIGHTS = "nnunet_weights.pth"  # beside the final checkpoint, for stock trainers


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, and rename it: `path` is the old or the new one.

    Raises:
        OSError: the system refuses, for example because the disk is full; the previous checkpoint stays.
    """
    save_content({"format": FORMAT, **content}, path)


def save_content(content: dict[str, Any], path: Path) -> None:
    """As `save_checkpoint`, without the number of its format: for files that other programs read."""
    with replacing(path) as temporary, open(temporary, "wb") as opened:
        file = _Remembering(opened)
        try:
            torch.save(content, cast("IO[bytes]", file))
        except RuntimeError as error:
            raise (file.error or error) from None
        opened.flush()
        os.fsync(opened.fileno())
    _sync_folder(path.parent)


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Content of a checkpoint of `nnssl_pretrain` on the CPU, every entry checked.

    A checkpoint of nnU-Net's trainers is one too: its network with its plans (`nnssl.checkpoints.nnunet_model`).

    Args:
        path: of the file.
        mapped: leave the tensors on the disk until they are used: for reading the entries of many runs.

    Raises:
        UserError: the file does not exist, is not a checkpoint of this package, or lacks something; a name in it
            cannot be part of a path, or its plans name a class that is not trusted.
    """
    try:
        content = load_content(path, mapped)
    except UserError as error:
        damaged = isinstance(error.__cause__, zipfile.BadZipFile)
        converted = nnunet_content(path) if path.is_file() and not damaged else None
        if converted is None:
            raise
        content = converted
    return check_entries(content, path)


def check_entries(content: dict[str, Any], path: Path, to_continue: bool = False) -> dict[str, Any]:
    """The content of a checkpoint, if its entries are valid.

    Args:
        content: of the file.
        path: of the file.
        to_continue: whether it must hold everything that a run continues from.

    Raises:
        UserError: as `load_checkpoint`.
    """
    fix = "give a checkpoint_*.pth that nnssl_pretrain wrote, unchanged"
    checked(content, CheckpointFile, path, fix)
    trusted_network(resolve_configuration(content["plans"], content["configuration"]), path)
    return checked(content, ResumableFile, path, fix) if to_continue else content


def load_content(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Content of a file of `save_checkpoint` on the CPU, whatever its entries are; `mapped` as of `load_checkpoint`.

    Files of `nnssl_export` are read as the checkpoint of the run that they come from.

    Raises:
        UserError: the file does not exist, cannot be read, or is not a whole checkpoint.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    if path.suffix == SAFETENSORS:
        return {"format": FORMAT, **read_safetensors(path)}
    try:
        if not mapped:
            check_whole(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpickling raises many types, and all of them mean: not our file
        if (refused := unreadable(path)) is not None:
            raise UserError(str(why(refused))) from error
        raise UserError(f"{path} is no checkpoint of nnssl, or it is damaged; give a checkpoint_*.pth that "
                        f"nnssl_pretrain or nnUNetv2_train wrote ({_PUBLIC})") from error  # fmt: skip
    if isinstance(content, dict) and ADAPTATION_PLAN in content:
        return {"format": FORMAT, **read_exchanged(content, path)}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of nnssl (format {FORMAT}); give a checkpoint_*.pth that "
                        f"nnssl_pretrain or nnUNetv2_train wrote ({_PUBLIC})")  # fmt: skip
    return content


def levels_of(content: Mapping[str, Any]) -> Levels:
    """Which maps of its network a checkpoint is pretrained for: its own entry, else those of its method."""
    own: Levels | None = content.get("levels")
    return own or get_method(content["method"]).levels


def check_whole(path: Path) -> None:
    """Raise BadZipFile where a record of a file of torch has another checksum, which torch does not look at."""
    if not zipfile.is_zipfile(path):  # cut off, or of PyTorch before 1.6: torch sees to it
        return
    with zipfile.ZipFile(path) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{record} has another checksum")


def package_versions() -> dict[str, str]:
    """Versions of what a run depends on; a package that is not installed is left out."""
    found = {}
    for name in ("nnssl", "nnunetv2", "torch", "numpy", "blosc2", "dynamic-network-architectures"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class _Remembering:
    """A file that keeps the system's error: torch's zip writer forgets it and raises a RuntimeError."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

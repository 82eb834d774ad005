"""Files of weights, opened by what they hold and not by their names, so that nothing in them runs."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nnssl.checkpoints.files import FINAL, check_whole
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.system import unreadable, why
from nnssl.data.trusted import only_plain_types

# Entries that hold a network's tensors, in the order in which they are tried.
_CONTAINERS = ("method_state", "network_weights", "state_dict", "model_state_dict", "model_state", "model", "net",
               "network", "student", "weights", "params")  # fmt: skip
_OF_MACOS = "__MACOSX/"  # what its archives keep of other file systems' attributes
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_BESIDE = ("adaptation_plan.json", "config.json", "plans.json", "dataset.json")
_LARGEST_HEADER = 100 * 2**20  # of safetensors, as the format bounds it
Kind = Literal["torch", "safetensors", "archive"]


@dataclass(frozen=True)
class Opened:
    """A file of weights.

    Args:
        path: as given: a file, a folder or an archive.
        file: that the tensors came from.
        tensors: of the network, by their names in the file.
        container: entry of the file that holds them; empty where they are all that it holds.
        rest: the file's other entries.
        beside: content of adaptation_plan.json, config.json, plans.json and dataset.json in the same folder; also the
            metadata of safetensors, as `__metadata__`.
        sha256: of the file.
    """

    path: Path
    file: str
    tensors: Mapping[str, Tensor]
    container: str = ""
    rest: Mapping[Any, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""


@contextmanager
def opened(source: str | Path, fold: str | None = None) -> Iterator[Opened]:
    """Open a file of weights, a folder with one, or a zip of a model folder; an archive is unpacked meanwhile.

    Args:
        source: its path.
        fold: of a model folder with several.

    Raises:
        UserError: there is no such file, several could be meant, it is damaged, it holds no tensors, or opening it
            could run code.
    """
    path = Path(source)
    with tempfile.TemporaryDirectory(prefix="nnssl_import_") as unpacked:
        file = _weights_file(path, fold)
        if _kind(file) == "archive":
            file = _weights_file(_unpacked(file, Path(unpacked)), fold, file)
        content = _content(file)
        tensors, container, rest = unwrapped(content, file)
        beside = _beside(file) | rest.pop("__beside__", {})
        name = str(file.relative_to(unpacked) if file.is_relative_to(unpacked) else file.name)
        yield Opened(path, name, tensors, container, rest, beside, sha256(file))


def unwrapped(content: Any, path: Path) -> tuple[dict[str, Tensor], str, dict[Any, Any]]:
    """Tensors of a network, the entry that holds them, and the file's other entries.

    Raises:
        UserError: there is no such entry.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__} and no named tensors; save the network's state_dict")
    if _is_state(content):
        return _tensors_of(content), "", {k: v for k, v in content.items() if not isinstance(v, Tensor)}
    for key in _CONTAINERS:
        inner = content.get(key)
        if not isinstance(inner, dict):
            continue
        beside = {k: v for k, v in content.items() if k != key}
        if _is_state(inner):
            return _tensors_of(inner), key, beside
        if any(isinstance(value, dict) and _is_state(value) for value in inner.values()):
            tensors, container, rest = unwrapped(inner, path)
            return tensors, f"{key}.{container}", beside | rest
    keys = ", ".join(str(key) for key in list(content)[:8]) or "nothing"
    raise UserError(f"{path} holds {keys}, and none of its entries is a network's named tensors; give the file with "
                    f"its state_dict")  # fmt: skip


def sha256(file: Path) -> str:
    """Checksum of a file, as hubs print it."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_state(content: Mapping[Any, Any]) -> bool:
    """Whether most entries are named tensors."""
    count = sum(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    return count > 0 and 2 * count >= len(content)


def _tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def _weights_file(path: Path, fold: str | None, archive: Path | None = None) -> Path:
    """The one file of weights that a path means, or the archive that was unpacked there."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}; give a file of weights, a folder with one, or a zip of a "
                        f"model folder")  # fmt: skip
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    files = [folder / FINAL for folder in folders if (folder / FINAL).is_file()]
    if fold is not None:
        files = [file for file in files if file.parent.name == f"fold_{fold}"]
    files = files or [file for folder in folders for file in sorted(folder.iterdir()) if _is_weights(file)]
    if not files and len(folders) == 2:  # an archive often holds one folder with all the rest
        return _weights_file(folders[1], fold, archive)
    if len(files) != 1:
        found = files or sorted(path.glob(f"*/*/{FINAL}"))
        listed = ", ".join(str(file.relative_to(path)) for file in found[:8]) or "none"
        fix = "unpack it and give the one to import" if archive else "give the one to import"
        raise UserError(f"{archive or path} holds {len(found) or 'no'} files of weights ({listed}); {fix}, of a model "
                        f"folder its fold's folder or -f FOLD")  # fmt: skip
    return files[0]


def _is_weights(file: Path) -> bool:
    try:
        return file.is_file() and _kind(file) in ("torch", "safetensors")
    except UserError:
        return False


def _kind(file: Path) -> Kind:
    """What a file is, from its first bytes and, for a zip, from the names in it."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise UserError(str(why(error))) from error
    if start.startswith(_ZIP):
        try:
            with zipfile.ZipFile(file) as archive:
                return "torch" if any(n.endswith("data.pkl") for n in archive.namelist()) else "archive"
        except zipfile.BadZipFile as error:
            raise UserError(f"{file} is damaged ({error}); copy it again") from error
    if start.startswith(_PICKLE):
        return "torch"
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    raise UserError(f"{file} is no file of PyTorch, safetensors or zip; give the weights themselves (a file of a few "
                    f"hundred bytes may be a pointer of git-lfs: download what it points to)")  # fmt: skip


def _unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a model folder's plans and weights; `extract` keeps every name below the folder."""
    try:
        with zipfile.ZipFile(archive) as content:
            for name in content.namelist():
                if name.endswith((".json", ".pth")) and not name.startswith(_OF_MACOS):
                    content.extract(name, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged ({error}); copy it again") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, or another compression
        raise UserError(f"{archive} cannot be unpacked here ({error}); unpack it, and give the folder") from error
    return folder


def _content(file: Path) -> Any:
    if _kind(file) == "safetensors":
        return _safetensors(file)
    try:
        check_whole(file)
        with only_plain_types(file, "take another copy, or save the network's state_dict alone"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged files raise errors of all types
        if (refused := unreadable(file)) is not None:
            raise UserError(str(why(refused))) from error
        short = " ".join(str(error).split())[:200]
        raise UserError(f"{file} cannot be read ({type(error).__name__}: {short}); copy it again") from error


def _safetensors(file: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError(f"{file} is in the format safetensors, which needs: pip install safetensors") from error
    try:
        with safe_open(str(file), framework="pt") as stream:
            content: dict[str, Any] = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = stream.metadata()
    except Exception as error:  # of the library's own type
        raise UserError(f"{file} is damaged ({error}); copy it again") from error
    return content | ({"__beside__": {"__metadata__": dict(metadata)}} if metadata else {})


def _beside(file: Path) -> dict[str, Any]:
    """JSON files in the folder of the weights and, for a fold's folder, of the model."""
    folders = [file.parent.parent, file.parent] if file.parent.name.startswith("fold_") else [file.parent]
    found = [folder / name for folder in folders for name in _BESIDE if (folder / name).is_file()]
    return {path.name: read_json(path) for path in found}

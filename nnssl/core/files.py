"""Files that are the old or the new one at every moment, even if the process that writes them is killed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nnssl.core.errors import UserError
from nnssl.core.lock import this_machine
from nnssl.core.names import shown

if TYPE_CHECKING:
    from pydantic import BaseModel

WRITING = ".writing"  # ends the names of files that are being written


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to; it takes the place of `file` at the end, or is removed after an error.

    The first use in a folder also removes what killed processes of this machine left half-written there.

    Raises:
        OSError: naming `file`, where the system named no file or the one beside it.
    """
    temporary = file.with_name(f".{file.name}.{_machine()}.{os.getpid()}{WRITING}")
    _remove_of_dead(file.parent)
    try:
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or cannot be written to any more
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill; it takes the place of `folder` at the end, or is removed after an error.

    Raises:
        OSError: the system refuses; what was in `folder` is still there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_of_dead(folder.parent)
    filled, old = (
        folder.with_name(f".{folder.name}{kind}.{_machine()}.{os.getpid()}{WRITING}") for kind in ("", ".old")
    )
    filled.mkdir()
    try:
        yield filled
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(filled, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        for left in (filled, old):
            shutil.rmtree(left, ignore_errors=True)


def replace_file(file: Path, content: bytes) -> None:
    """Write `content` to a file in one piece, flushed to the disk; folders that are missing are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def file_digest(file: str | Path, size: int) -> str:
    """Hash of a file's content, of `size` bytes in hexadecimal digits; raises OSError where it cannot be read."""
    digest = hashlib.blake2b(digest_size=size)
    with open(file, "rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder that no other process writes to now."""
    for file in folder.glob(f"*{WRITING}"):
        if not file.is_dir():
            file.unlink(missing_ok=True)


@functools.cache  # listing a folder takes too long for every file that is written there
def _remove_of_dead(folder: Path) -> None:
    ours = re.compile(rf"\..+\.{_machine()}\.(\d+){re.escape(WRITING)}", re.DOTALL)
    with contextlib.suppress(OSError):  # the write that follows reports what is wrong with the folder
        for entry in os.scandir(folder) if _machine() else ():
            if (found := ours.fullmatch(entry.name)) and not Path("/proc", found[1]).exists():
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """A short name of this machine, or container; empty where the system does not tell."""
    name = this_machine()
    return f"{zlib.crc32(name.encode()):08x}" if name else ""


_SHOWN, _LONG = 20, 600  # faults that a message lists, and characters a fault
# Pydantic's faults in the words of our other messages.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
}
T = TypeVar("T")


def read_json(file: Path, schema: type[BaseModel] | None = None, fix: str = "mend it, or restore it") -> Any:
    """Content of a JSON file.

    NaN and Infinity, which Python reads although JSON lacks them, are refused unless the schema says `with_nan`:
    nnU-Net writes them into some files. A key that an object has twice is refused too; Python would take the last one.

    Args:
        file: its path.
        schema: what it must hold (`nnssl.core.schemas`); None for any JSON.
        fix: what the user can do, as the end of a sentence.

    Raises:
        UserError: the file is missing, cannot be read, is no JSON, or does not fit the schema.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is no file; {fix}")
    try:
        constant = _number if getattr(schema, "with_nan", False) else _no_number
        content = json.loads(file.read_bytes().decode("utf-8-sig"), parse_constant=constant, object_pairs_hook=_once)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; {fix}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); {fix}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({_one_line(error)}); {fix}") from error
    return content if schema is None else checked(content, schema, file, fix)


def checked(content: T, schema: type[BaseModel], where: object, fix: str = "mend it, or restore it") -> T:
    """The content itself, unchanged, if it fits the schema.

    Args:
        content: from JSON, or from a checkpoint.
        schema: what it must hold.
        where: its file or flag, for the message.
        fix: what the user can do, as the end of a sentence.

    Raises:
        UserError: it does not fit; the message lists the faults (at most 20) with their places.
    """
    from pydantic import ValidationError

    try:
        schema.model_validate(content)
    except ValidationError as error:
        listed = [f"{_place(e['loc'])}{_what(e)}" for e in error.errors(include_url=False)]
        more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise UserError(f"{where}: {'; '.join(listed[:_SHOWN])}{more}; {fix}") from error
    return content


def write_json(file: Path, content: Any) -> None:
    """Write JSON so that the file is either the old or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content, indent=4))


def _number(name: str) -> float:
    return float(name)  # also "-Infinity"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return content


def _place(parts: Sequence[int | str]) -> str:
    path = ""
    for part in (p for p in parts if p != "[key]"):  # how pydantic marks the name of an entry
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{_key(part)}"
    return f"{path}: " if path else ""


def _key(name: str) -> str:
    return name if name.replace("_", "a").isalnum() else shown(name)


def _what(fault: Mapping[str, Any]) -> str:
    kind, given = fault["type"], fault["input"]
    named = (
        kind == "missing"
        or fault["loc"][-1:] == ("[key]",)
        or (kind == "value_error" and isinstance(given, (dict, list)))
    )
    if named:  # by its place, or in the message
        return _message(fault)
    simple = given is None or isinstance(given, (bool, int, float, str))
    return _message(fault) + (f" (it is {shown(given)})" if simple else f" (it is {type(given).__name__})")


def _message(fault: Mapping[str, Any]) -> str:
    words = _WORDS.get(fault["type"])
    return _one_line(
        str(fault["msg"]).removeprefix("Value error, ") if words is None else words.format(**fault.get("ctx", {}))
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:_LONG]

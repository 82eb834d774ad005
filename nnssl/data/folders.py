"""nnU-Net's three folders, and the names and numbers of the datasets in them."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from nnssl.core.errors import UserError
from nnssl.core.names import check_name, shown, why_not_a_name

_NUMBERS, _LONGEST_NUMBER = ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"), 4  # digits
_MANY = 40  # dataset names that an error lists at most
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_STOCK_DIGITS = 3  # of a number that nnU-Net's own commands can tell from others


def require_folders(*names: str) -> tuple[Path, ...]:
    """Folders behind nnU-Net's variables, such as `require_folders("nnUNet_raw", "nnUNet_results")`.

    All but nnUNet_raw are made where they do not exist.

    Raises:
        UserError: a variable is not set, or must hold a number of processes and does not; nnUNet_raw does not
            exist; or a folder cannot be made.
    """
    for variable in _NUMBERS:  # nnU-Net reads them when it is imported, without a word
        value = os.environ.get(variable, "0")
        if not (value.isascii() and value.isdecimal() and len(value) <= _LONGEST_NUMBER):
            raise UserError(f"{variable}={shown(value)} is not a number of processes; type: export {variable}=8")
    return tuple(_folder(name) for name in names)


def _folder(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        raise UserError(f"the folder variable {name} is not set; type: export {name}=/path/to/{name}")
    folder = Path(value)
    if name == "nnUNet_raw":
        if not folder.is_dir():
            raise UserError(f"{name}={value} is not a folder; type: export {name}=/path/to/{name}")
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {name}={value} cannot be made ({error.strerror}); choose another: "
                        f"export {name}=/path/to/{name}") from error  # fmt: skip
    return folder


@contextlib.contextmanager
def explained_errors_of(preprocessed: Path) -> Iterator[None]:
    """Turn the errors of a full disk, and of files and folders without permission, into a sentence.

    Raises:
        UserError: in place of such an OSError; it names the path.
    """
    try:
        yield
    except OSError as error:
        where = Path(str(error.filename or preprocessed))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left in {preprocessed}; make room, or let nnUNet_preprocessed name another disk,"
                            f" and run the same line again: what is done is kept") from error  # fmt: skip
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        if where.is_relative_to(preprocessed):
            raise UserError(f"{where} cannot be written to ({error.strerror}); let nnUNet_preprocessed name a folder "
                            f"of your own, or ask its owner to run the same line") from error  # fmt: skip
        raise UserError(f"{where} cannot be opened ({error.strerror}); change its permissions") from error


def dataset_name(id_or_name: int | str) -> str:
    """Full name, such as Dataset500_Thorax, of a dataset given by number or by name.

    The search covers all of nnU-Net's three folders that are set. The whole number counts: nnU-Net's own conversion
    compares the beginning of the name, so that 150 would find Dataset1500_Thorax too.

    Raises:
        UserError: no dataset of that number or name exists, or several have the number; the message lists what exists.
    """
    text = str(id_or_name)
    candidates = [name for name in _datasets(_FOLDERS) if is_dataset(name, text)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(f"several datasets have the id {text}: {', '.join(candidates)}; rename all but one")
    if text.startswith("Dataset"):
        check_name(text, "dataset")
    known = existing_datasets()
    listed = ", ".join(known[:_MANY]) + (", ..." if len(known) > _MANY else "")
    called = text if text.isprintable() and len(text) <= _MANY else shown(text)
    raise UserError(f"there is no dataset {called} in nnUNet_raw; those that exist: {listed or 'none'}")


def existing_datasets() -> list[str]:
    """Names of the datasets in nnUNet_raw and nnUNet_preprocessed, sorted."""
    return _datasets(_FOLDERS[:2])


def is_dataset(name: str, id_or_name: int | str) -> bool:
    """Whether a number (with or without leading zeros) or a full name stands for the dataset `name`."""
    text = str(id_or_name)
    return name == text or (text.isdecimal() and text.isascii() and _digits(name) == text.lstrip("0"))


def dataset_id(name: str) -> int:
    """Number of a dataset's name: 500 for Dataset500_Thorax, 1500 for Dataset1500_Thorax.

    Raises:
        UserError: it is no name of a dataset.
    """
    return int(_digits(check_name(name, "dataset")) or "0")


def dataset_argument(name: str) -> str:
    """A dataset's name in the lines that we print, for nnU-Net's commands and ours.

    It is the number, or the full name where nnU-Net's own commands would find another dataset: in places they cut
    numbers to three digits and take the first name that begins with them.
    """
    digits = name.removeprefix("Dataset").split("_")[0]
    start = f"Dataset{digits}"
    like_it = [other for other in _datasets(_FOLDERS) if other != name and other.startswith(start)]
    if len(digits) != _STOCK_DIGITS or like_it:
        return shlex.quote(name)
    return str(dataset_id(name))


def _digits(name: str) -> str:
    """Digits of the number in a valid name, without leading zeros."""
    return name.removeprefix("Dataset").split("_")[0].lstrip("0")


def _datasets(folders: tuple[str, ...]) -> list[str]:
    found: set[str] = set()
    for variable in folders:
        folder = Path(os.environ.get(variable) or os.devnull)
        if folder.is_dir():
            with os.scandir(folder) as entries:
                names = {e.name for e in entries if e.name.startswith("Dataset") and e.is_dir()}
            found |= {name for name in names if why_not_a_name(name, "dataset") is None}
    return sorted(found)


def check_output_folder(folder: Path) -> None:
    """Make sure that a folder can be written to, or could be made.

    Raises:
        UserError: there is no permission for that, or it or a folder above it is a file.
    """
    whole = folder.resolve()
    there = next(path for path in (whole, *whole.parents) if os.path.exists(path))
    if not there.is_dir():
        raise UserError(f"{there} is a file; -o takes a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the folder {there} cannot be written to; choose another one with -o")

"""nnU-Net's three folders, and the names of the datasets in them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nnssl.errors import UserError

_MANY = 40  # dataset names that an error lists at most


def require_folders(*names: str) -> tuple[Path, ...]:
    """Folders behind nnU-Net's variables, such as `require_folders("nnUNet_raw", "nnUNet_results")`.

    All but nnUNet_raw are made where they do not exist.

    Raises:
        UserError: a variable is not set, nnUNet_raw does not exist, or a folder cannot be made.
    """
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
    """Turn a full disk, and a file or folder that may not be written or read, into a sentence.

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

    nnU-Net's own conversion: it looks into all of its three folders that are set.

    Raises:
        UserError: no dataset of that number or name exists, or several have the number; the message lists what exists.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    text = str(id_or_name)
    if text.isdecimal():
        candidates = [str(name) for name in find_candidate_datasets(int(text))]
    else:
        candidates = [name for name in existing_datasets() if name == text]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(f"several datasets have the id {text}: {', '.join(candidates)}; rename all but one")
    known = existing_datasets()
    listed = ", ".join(known[:_MANY]) + (", ..." if len(known) > _MANY else "")
    raise UserError(f"there is no dataset {text} in nnUNet_raw; those that exist: {listed or 'none'}")


def existing_datasets() -> list[str]:
    """Names of the datasets in nnUNet_raw and nnUNet_preprocessed, sorted."""
    found: set[str] = set()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        folder = Path(os.environ.get(name) or os.devnull)
        if folder.is_dir():
            found |= {entry.name for entry in os.scandir(folder) if entry.name.startswith("Dataset") and entry.is_dir()}
    return sorted(found)


def dataset_id(name: str) -> int:
    """Number of a dataset's name: 500 for Dataset500_Thorax."""
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

    return int(convert_dataset_name_to_id(name))

"""The files of a case, checked before nnU-Net reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.listing import printable, why_no_file, why_not_utf8
from nnssl.data.image_grids import array_grid, grid_difference, refuse_too_large
from nnssl.data.image_headers import Header, read_header
from nnssl.data.voxel_data import check_size, check_tiff, check_voxels
from nnssl.data.voxel_files import Voxels, find_voxels
from nnssl.errors import BadCase, DamagedFile


@dataclass(frozen=True)
class CheckedFiles:
    """Files that nnU-Net can read.

    Args:
        headers: of the images and of the label, as far as the formats are known.
        complete: whether the voxels were checked too: of a format that is not known, only reading can tell.
        warnings: where a channel or the label lies elsewhere than the first channel.
    """

    headers: list[Header]
    complete: bool
    warnings: tuple[str, ...]


def check_files(images: Sequence[str], reader: Callable[[], Any] | None, label: str | None = None) -> CheckedFiles:
    """Check files before nnU-Net reads them: each is opened for its header, and gone through once in small blocks.

    Args:
        images: of one case, one a channel.
        reader: nnU-Net's class; None where it is not known yet, so that only what is needed to read them is judged.
        label: of the case.

    Raises:
        BadCase: with the file and the reason: none that can be opened, cut, damaged, too large for the machine, with
            voxels or a grid that cannot be used, or channels that do not fit together.
    """
    named = [(str(file), "image") for file in images] + ([(label, "label")] if label is not None else [])
    found = [_check_header(file, what, reader) for file, what in named]
    headers = [header for header, _ in found]
    known = [header for header in headers if header is not None]
    if known:
        refuse_too_large(known)
    for (file, what), (header, voxels) in zip(named, found, strict=True):
        with _naming(file, what):
            if voxels is not None:
                check_voxels(voxels)
            elif header is not None and header.is_tiff:
                check_tiff(Path(file))
    complete = all(voxels is not None or (header is not None and header.is_tiff) for header, voxels in found)
    _check_channels([header for header in headers[: len(images)] if header is not None], reader)
    return CheckedFiles(known, complete, tuple(_warnings(headers, reader)))


def _check_header(file: str, what: str, reader: Callable[[], Any] | None) -> tuple[Header | None, Voxels | None]:
    with _naming(file, what):
        if (reason := why_not_utf8(file) or why_no_file(file)) is not None:
            raise DamagedFile(f"it {reason}")
        voxels = find_voxels(Path(file))  # before another library meets a damaged header
        if voxels is not None:
            check_size(voxels)
        return read_header(Path(file), reader, is_label=what == "label"), voxels


def _check_channels(headers: Sequence[Header], reader: Callable[[], Any] | None) -> None:
    """Raise BadCase where nnU-Net's reader would find that the channels of a case are no channels of one volume."""
    grids = [array_grid(header, reader) for header in headers]
    for size, spacing in grids[1:]:
        if size != grids[0][0]:
            raise BadCase("channels of different shapes")
        if not np.allclose(grids[0][1], spacing):
            raise BadCase("channels of different spacings")


def _warnings(headers: Sequence[Header | None], reader: Callable[[], Any] | None) -> Iterator[str]:
    for header in headers:
        if header is not None and header.doubt:
            yield f"{header.file.name}: {header.doubt}"
    for header in headers[1:]:
        if headers[0] is not None and header is not None and (apart := grid_difference(headers[0], header, reader)):
            yield f"{header.file.name} lies elsewhere than {headers[0].file.name}: {apart}; check that they overlap"


@contextmanager
def _naming(file: str, what: str) -> Iterator[None]:
    """Let what is wrong with a file say which one it is."""
    name = printable(Path(file).name)
    try:
        yield
    except OSError as error:
        raise DamagedFile(f"unreadable {what}: {name}: it cannot be opened ({error.strerror or error})") from error
    except DamagedFile as error:
        raise DamagedFile(f"unreadable {what}: {name}: {error}") from error
    except BadCase as error:
        raise BadCase(f"{error} ({what} {name})") from error

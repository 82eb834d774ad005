"""Writing preprocessed cases so that every file that exists is whole, and listing the cases that are there.

A case is claimed by a lock, written to `DatasetXXX/.writing/<folder>/<case>/` and renamed into place. What a killed job
leaves there is removed by the next one that prepares the same case.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.geometry import bounding_box
from nnssl.core.lock import Lock, waiting_lock
from nnssl.core.names import check_name

_WITHOUT_LABEL = "_imagesTr_unlabelled"
_RANGE_PERCENTILES = (0.5, 99.5)
_RANGE_SAMPLES = 1_000_000  # voxels that the stored percentiles are taken from
# Small enough that one slice or one box decompresses little else: 16 KiB blocks in chunks of at most 256 KiB.
_BLOCK = (4, 64, 64)
_CHUNK = (4, 256, 256)

logger = logging.getLogger("nnssl")


def body_folder(folder: Path) -> Path:
    """Folder of the body masks that belong to nnU-Net's folder of preprocessed volumes."""
    return folder.with_name(f"{folder.name}_body")


def folder_without_label(folder: Path) -> Path:
    """Folder of the cases of a labelled dataset that have no label: stock training lists nnU-Net's `folder`."""
    return folder.with_name(folder.name + _WITHOUT_LABEL)


def folder_with_label(folder: Path) -> Path | None:
    """The opposite of `folder_without_label`; None for any other folder."""
    name = folder.name.removesuffix(_WITHOUT_LABEL)
    return None if name == folder.name else folder.with_name(name)


def done_cases(folder: Path) -> set[str]:
    """Cases with all three files of nnU-Net in `folder`; no file is opened."""
    files = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    images = {file[: -len(".b2nd")] for file in files if file.endswith(".b2nd")}
    return {case for case in images if f"{case}_seg.b2nd" in files and f"{case}.pkl" in files}


def masked_cases(folder: Path) -> set[str]:
    """Cases that have a body mask beside `folder`."""
    bodies = body_folder(folder)
    return (
        {e.name[: -len(".b2nd")] for e in os.scandir(bodies) if e.name.endswith(".b2nd")} if bodies.is_dir() else set()
    )


def refuse_older_format(folder: Path) -> None:
    """Raise UserError where `folder` holds volumes of nnU-Net before blosc2: it refuses a mixture."""
    if folder.is_dir() and any(entry.name.endswith((".npz", ".npy")) for entry in os.scandir(folder)):
        raise UserError(f"{folder} was preprocessed by an older nnU-Net (.npz files); delete it and run this again")


def save_case(
    folder: Path,
    case: str,
    image: np.ndarray,
    seg: np.ndarray,
    properties: dict[str, Any],
    body: np.ndarray,
    patch_size: tuple[int, ...],
) -> None:
    """Write nnU-Net's three files of a case, as `DefaultPreprocessor.run_case_save` does, and its body mask.

    The image appears last: where it is listed, everything else is there.

    Args:
        folder: nnU-Net's, `DatasetXXX/<data_identifier>`.
        case: name.
        image: (C, Z, Y, X); becomes float32.
        seg: (1, Z, Y, X); becomes int16.
        properties: nnU-Net's, pickled.
        body: (Z, Y, X) bool.
        patch_size: of the plans; it decides the sizes of the compressed blocks.

    Raises:
        OSError: with errno ENOSPC where the disk is full.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    image, seg = image.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
    blocks, chunks = comp_blosc2_params(image.shape, patch_size, image.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
    with _writing(folder, case, image.nbytes + seg.nbytes) as temporary:
        nnUNetDatasetBlosc2.save_case(
            image, seg, properties, str(temporary / case),
            chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg,
        )  # fmt: skip
        save_body_mask(temporary / "body", body, image)
        _replace(temporary / "body", body_folder(folder) / f"{case}.b2nd")
        for file in (f"{case}.pkl", f"{case}_seg.b2nd", f"{case}.b2nd"):
            _replace(temporary / file, folder / file)


def save_body(folder: Path, case: str, body: np.ndarray, image: np.ndarray) -> None:
    """Write the body mask alone, for a case that nnU-Net has preprocessed; arguments as in `save_case`."""
    with _writing(folder, case, body.nbytes) as temporary:
        save_body_mask(temporary / "body", body, image)
        _replace(temporary / "body", body_folder(folder) / f"{case}.b2nd")


def save_body_mask(path: Path, body: np.ndarray, image: np.ndarray) -> None:
    """Write a mask with what a reader needs to draw from it: a body voxel costs one slice, not the whole mask.

    `schunk.vlmeta` holds `slice_counts` (list of Z ints: body voxels per slice), `body_box` ([start, stop), each (z, y,
    x)) and `intensity_range` (list of [0.5, 99.5 percentile] of the values inside the body per channel, from at most a
    million voxels, evenly spaced).

    Args:
        path: file to write.
        body: (Z, Y, X) bool, not empty.
        image: (C, Z, Y, X) preprocessed values.
    """
    import blosc2

    path.unlink(missing_ok=True)
    array: Any = blosc2.asarray(
        np.ascontiguousarray(body, dtype=np.uint8),
        urlpath=str(path),
        chunks=tuple(map(min, _CHUNK, body.shape)),
        blocks=tuple(map(min, _BLOCK, body.shape)),
        # filters make the runs of a mask shorter, and reading it several times slower
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1},
    )
    array.schunk.vlmeta["body_box"] = [side.tolist() for side in bounding_box(body)]
    array.schunk.vlmeta["slice_counts"] = [int(count) for count in body.sum(axis=(1, 2))]
    array.schunk.vlmeta["intensity_range"] = [_percentiles(channel[body]) for channel in image]


def save_resized(folder: Path, case: str, values: np.ndarray, header: Mapping[str, Any]) -> Path:
    """Write a resized body (C, z, y, x) with its header (`nnssl.data.resized`); it is always read as a whole.

    Args:
        folder: see `nnssl.data.resized.resized_folder`.
        case: name.
        values: float16.
        header: for `schunk.vlmeta`.

    Raises:
        OSError: with errno ENOSPC where the disk is full.
    """
    import blosc2

    file = body_folder(folder) / f"{case}.b2nd"
    with _writing(folder, case, values.nbytes) as temporary:
        array: Any = blosc2.asarray(
            np.ascontiguousarray(values), urlpath=str(temporary / "body"), chunks=(1, *values.shape[1:]),
            blocks=(1, 1, *values.shape[2:]),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1},
        )  # fmt: skip
        for key, value in header.items():
            array.schunk.vlmeta[key] = value
        del array
        _replace(temporary / "body", file)
    return file


def _percentiles(values: np.ndarray) -> list[float]:
    step = -(-values.size // _RANGE_SAMPLES)
    return [float(p) for p in np.percentile(values[::step], _RANGE_PERCENTILES)]


@contextlib.contextmanager
def dataset_lock(home: Path, say: Callable[[str], object] = logger.info) -> Iterator[None]:
    """Hold a dataset's folder in nnUNet_preprocessed, which is made, for what only one job may do: plans, copies.

    Waits for the job that holds it, as long as that takes; `say` is told which one it is.

    Raises:
        OSError: the folder cannot be written to.
    """
    home.mkdir(parents=True, exist_ok=True)
    with waiting_lock(home / ".nnssl.lock", f"the plans of {home.name}", say):
        yield


def claim_of(folder: Path, case: str) -> Lock:
    """The lock that a job holds while it prepares a case of `folder`; its name cannot be that of a case."""
    return Lock(_temporary_folder(folder) / f".{case}.lock", f"{case} in {folder}")


def claimed(folder: Path, case: str) -> Lock | None:
    """The claim of a case, held; None where another job holds it.

    Raises:
        OSError: the folder cannot be written to.
    """
    claim = claim_of(folder, case)
    while True:
        claim.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another job has just removed the empty folder
            return claim if claim.try_acquire() else None


def claimed_cases(folder: Path) -> set[str]:
    """Cases of `folder` that a job has claimed, or had claimed when it died; their volumes may lack a record."""
    temporary = _temporary_folder(folder)
    names = [entry.name for entry in os.scandir(temporary)] if temporary.is_dir() else []
    return {name[1 : -len(".lock")] for name in names if name.startswith(".") and name.endswith(".lock")}


def remove_empty_temporary_folder(folder: Path) -> None:
    """Remove what `claimed` and `save_case` made for `folder`, unless a job is at work there."""
    temporary = _temporary_folder(folder)
    with contextlib.suppress(OSError):
        temporary.rmdir()
        temporary.parent.rmdir()


def _temporary_folder(folder: Path) -> Path:
    return folder.parent / ".writing" / folder.name


@contextlib.contextmanager
def _writing(folder: Path, case: str, num_bytes: int) -> Iterator[Path]:
    """An empty folder for the files of one case, on the file system of `folder`; removed afterwards."""
    if (folder.parent / ".writing").is_symlink():
        raise UserError(
            f"{folder.parent / '.writing'} is a link, and what is behind it would be removed; delete the link"
        )
    temporary = _temporary_folder(folder) / check_name(case, "case", folder.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except RuntimeError as error:
        # blosc2 does not say why it could not write
        if shutil.disk_usage(folder.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty_temporary_folder(folder)


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    os.replace(source, target)

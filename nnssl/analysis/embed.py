"""Embeddings of many images: what `nnssl_embed` does."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from nnssl.analysis.files import (
    ENDINGS,
    CaseVectors,
    cell_affine,
    is_dense_map,
    read_vectors,
    write_dense,
    write_vectors,
)
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, remove_leftovers, write_json
from nnssl.core.names import shown
from nnssl.core.own_files import EmbeddingFile
from nnssl.data.folders import check_output_folder
from nnssl.data.next_lines import command, device_flag
from nnssl.data.raw import RawCase
from nnssl.features.body import VOXELS, body_vector, fit_projection, prepare_with_body
from nnssl.features.cases import find_cases
from nnssl.features.components import Projection, load_projection
from nnssl.features.images import ImageReader, PreparedImage
from nnssl.features.model import PretrainedModel, load_pretrained
from nnssl.features.tiles import dense_features, dense_shape, tile_for
from nnssl.networks.pyramid import Stride

log = logging.getLogger("nnssl")

What = Literal["case", "dense"]
_FORMATS = {"case": ("npz", "csv"), "dense": ("blosc2", "nifti")}
_SETTINGS, _PCA = "embedding.json", "pca.npz"
_OUTPUTS = (_PCA, "vectors.npz", "vectors.csv")
_LEFT = re.compile(r"\..+\.\d+(\.b2nd|\.nii\.gz)(\.npy)?", re.DOTALL)
_SAVE_EVERY = 10  # cases


@dataclass(frozen=True)
class Embedded:
    """What is in the output folder.

    Args:
        folder: the output.
        cases: names, sorted, with those of earlier calls that this one continued.
        left_out: reasons by name of the missing ones.
        next: lines to type next, as printed by `nnssl_embed`.
    """

    folder: Path
    cases: list[str]
    left_out: dict[str, str]
    next: tuple[str, ...] = ()


def embed(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    what: What = "case",
    file_format: str | None = None,
    components: int | None = None,
    level: int | None = None,
    pca: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    allow_other_intensities: bool = False,
    only: Collection[str] | None = None,
) -> Embedded:
    """Write vectors or dense maps of raw images by a pretrained backbone.

    Cases that the output folder has already, made with the same settings, are kept.

    Args:
        model: run folder of a pretraining, or a checkpoint; or `random:RUN`.
        images: dataset of nnUNet_raw, folder or image, see `nnssl.features.cases.find_cases`.
        output: folder; made if missing.
        what: `case` for the mean over each case's body (`vectors.npz`); `dense` for a file per case with the features
            of every cell.
        file_format: `npz` or `csv` (which writes both) for vectors; `blosc2` or `nifti` for dense maps; None for the
            first.
        components: principal components of dense maps, fitted on a sample of body voxels; None for all channels.
        level: the only level to use, 0 the finest; None for all.
        pca: `pca.npz` of another call, for its components instead of new ones.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        overwrite: make everything again.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).
        only: names of the cases to take; None for all.

    Raises:
        UserError: an argument is wrong, there are no such images, or they are of another modality; before anything is
            computed.
    """
    file_format = _checked_format(what, file_format, components, pca)
    device = resolve_device(device)
    backbone = load_pretrained(model, device)
    _check_level(backbone, level, components)
    cases = [case for case in find_cases(images, backbone.dataset_json) if only is None or case.name in only]
    given = None if pca is None else load_projection(Path(pca), backbone, level)
    if given is not None and components not in (None, len(given.components)):
        raise UserError(f"{pca} has {len(given.components)} components; leave out -components")
    if given is not None:
        components = len(given.components)
    guard = ImageReader(backbone, [case.images for case in cases], allow_other_intensities)
    folder = Path(output)
    checkpoint = f"{RANDOM}:{backbone.path}" if backbone.is_random else str(backbone.path)
    settings = {"what": what, "format": file_format, "method": backbone.method, "checkpoint": checkpoint,
                "weights": backbone.fingerprint, "level": level, "components": components,
                "channels": backbone.channels, "strides": backbone.strides}  # fmt: skip
    _open_folder(folder, settings, overwrite)
    job = _Job(backbone, folder, settings, device, guard)
    made = job.vectors(cases) if what == "case" else job.dense(cases, given)
    flags = ["--allow_other_intensities"] if allow_other_intensities else []
    return replace(made, next=_pictures(made, cases, what, str(model), level, *flags, *device_flag(device, ours=True)))


def _pictures(
    made: Embedded, cases: list[RawCase], what: str, model: str, level: int | None, *flags: str
) -> tuple[str, ...]:
    """The figure of the first image's features: similarities for vectors, principal components for maps."""
    kind = "similarity" if what == "case" else "pca"
    levels = [] if level is None else ["-level", level]
    for case in cases:
        if case.name in made.cases:
            words = ["-m", model, "-i", case.images[0], *levels, "-o", f"{kind}.png", *flags]
            return (command("nnssl_visualize", kind, *words),)
    return ()  # all were left out; what is there comes from an earlier call


@dataclass(frozen=True)
class _Job:
    model: PretrainedModel
    folder: Path
    settings: dict[str, Any]
    device: str
    guard: ImageReader

    @property
    def level(self) -> int | None:
        return cast("int | None", self.settings["level"])

    def vectors(self, cases: list[RawCase]) -> Embedded:
        done = read_vectors(self.folder / "vectors.npz")
        left_out: dict[str, str] = {}
        unsaved = len(done)  # the earlier call may have written no csv: write all again
        try:
            for case in (case for case in cases if case.name not in done):
                image = self._prepare(case, left_out)
                if image is None or image.body is None:
                    continue
                done[case.name] = body_vector(self.model, image.values, image.body, self.level, self.device)
                unsaved += 1
                if unsaved >= _SAVE_EVERY:
                    unsaved = self._save(done)
        finally:
            if unsaved:
                self._save(done)
        return self._finish(sorted(done), left_out)

    def _save(self, done: CaseVectors) -> int:
        channels = self.model.channels if self.level is None else [self.model.channels[self.level]]
        boundaries = [0, *np.cumsum(channels).tolist()]
        write_vectors(self.folder, done, boundaries, self.settings["format"] == "csv", self.level or 0)
        return 0

    def dense(self, cases: list[RawCase], projection: Projection | None) -> Embedded:
        ending = ENDINGS[self.settings["format"]]
        left_out: dict[str, str] = {}
        done = _finished(self.folder, ending)
        todo = [case for case in cases if case.name not in done]
        if todo and self.settings["components"] is not None:
            projection = self._projection(todo, projection, left_out)
        for case in (case for case in todo if case.name not in left_out):
            image = self._prepare(case, left_out)
            if image is not None:
                self._write(image, projection, ending)
        return self._finish(sorted(_finished(self.folder, ending)), left_out)

    def _projection(self, cases: list[RawCase], given: Projection | None, left_out: dict[str, str]) -> Projection:
        """The given one, the one of the earlier call that this one continues, or a new one."""
        file = self.folder / _PCA
        if file.is_file():
            found = load_projection(file, self.model, self.level)
            if given is not None and not np.array_equal(given.components, found.components):
                raise UserError(f"{self.folder} holds maps by other components ({file}); give another -o, or "
                                f"--overwrite")  # fmt: skip
            return found
        found = given or self._fit(cases, left_out)
        found.save(file)
        shares = ", ".join(f"{share:.1%}" for share in found.explained)
        log.info(f"{len(found.components)} components with {shares} of the variance: {file}")
        return found

    def _fit(self, cases: list[RawCase], left_out: dict[str, str]) -> Projection:
        log.info(f"fitting the components on up to {VOXELS} body voxels of {len(cases)} cases")
        prepared = (image for case in cases if (image := self._prepare(case, left_out)) is not None)
        return fit_projection(self.model, prepared, len(cases), self.settings["components"], self.level, self.device)

    def _write(self, image: PreparedImage, projection: Projection | None, ending: str) -> None:
        started, file = time.perf_counter(), self.folder / f"{image.name}{ending}"
        shape = dense_shape(self.model, image.values.shape[1:], self.level, projection)
        stride = self.model.strides[self.level or 0]
        extent = tile_for(self.model, image.values).extent
        write_dense(
            file, self.settings["format"], shape, cell_affine(image.geometry, stride),
            lambda out: dense_features(self.model, image.values, self.level, self.device, projection, out),
            {**_plain(self.settings), "case": image.name, "stride": list(stride)},
            cast(Stride, tuple(max(e // s // 2, 1) for e, s in zip(extent, stride, strict=True))),
        )  # fmt: skip
        log.info(f"{file}: {' x '.join(map(str, shape))}, {time.perf_counter() - started:.1f} s")

    def _prepare(self, case: RawCase, left_out: dict[str, str]) -> PreparedImage | None:
        """The preprocessed image; None, and the reason in `left_out`, where it cannot be used."""
        image = prepare_with_body(case, self.model, left_out)
        return None if image is None else self.guard.saw(image)

    def _finish(self, done: list[str], left_out: dict[str, str]) -> Embedded:
        self.guard.report()
        if not done:
            raise UserError(f"no image could be used; the first one: {next(iter(left_out.values()), 'none')}")
        write_json(self.folder / _SETTINGS, {**_plain(self.settings), "cases": done, "left_out": left_out})
        return Embedded(self.folder, done, left_out)


def _checked_format(what: str, file_format: str | None, components: int | None, pca: str | Path | None) -> str:
    if what not in _FORMATS:
        raise UserError(f"-what takes {' or '.join(_FORMATS)}, not {what!r}")
    if file_format is not None and file_format not in _FORMATS[what]:
        raise UserError(f"-what {what} is written as {' or '.join(_FORMATS[what])}, not {file_format!r}; set -format "
                        f"{_FORMATS[what][0]}")  # fmt: skip
    if what == "case" and (components is not None or pca is not None):
        raise UserError("-components and -pca are for dense maps; add -what dense, or leave them out")
    return file_format or _FORMATS[what][0]


def _check_level(model: PretrainedModel, level: int | None, components: int | None) -> None:
    if level is not None and not 0 <= level < len(model.channels):
        listed = ", ".join(f"{i} (stride {'x'.join(map(str, s))})" for i, s in enumerate(model.strides))
        raise UserError(f"there is no level {level}; this network has {listed}")
    channels = sum(model.channels) if level is None else model.channels[level]
    if components is not None and not 1 <= components <= channels:
        raise UserError(f"-components {components}: the features have {channels} channels; set 1 to {channels}")


def _open_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the output folder or check that it holds embeddings of the same kind, and write the settings there."""
    file = folder / _SETTINGS
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not file.is_file():
        raise UserError(f"{folder} holds other files; give a new folder as -o")
    found = read_json(file, EmbeddingFile, "give a new folder as -o") if file.is_file() else None
    if found is not None and not overwrite:
        others = [name for name, value in _plain(settings).items() if name != "checkpoint" and found.get(name) != value]
        if others:
            raise UserError(f"{folder} holds embeddings with another {others[0]}; give another -o, or --overwrite")
    elif found is not None:
        maps = [m for ending in ENDINGS.values() for m in folder.glob(f"*{ending}") if not _LEFT.fullmatch(m.name)]
        if strange := sorted(map_.name for map_ in maps if not is_dense_map(map_)):
            raise UserError(f"{folder} also holds {shown(strange[0])}, which nnssl_embed did not write, and "
                            f"--overwrite would remove it; move it away, or give a new folder as -o")  # fmt: skip
        for made in (*maps, *(folder / name for name in _OUTPUTS)):
            made.unlink(missing_ok=True)
    for left in (file for file in folder.glob(".*") if _LEFT.fullmatch(file.name)):  # of a killed process
        left.unlink()
    remove_leftovers(folder)
    write_json(file, _plain(settings))


def _finished(folder: Path, ending: str) -> set[str]:
    """Cases with a dense map."""
    names = (file.name for file in folder.glob(f"*{ending}"))
    return {name[: -len(ending)] for name in names if not name.startswith(".")}  # still being written


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As read back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain

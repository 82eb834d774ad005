"""Rows for files of volumes that are damaged or odd, read as every command reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase
from nnssl.data.raw import RawCase
from tests.bad_inputs.rows import Row, Said, function
from tests.bad_inputs.volumes import (
    Fault,
    affine,
    cut,
    flip,
    labels,
    nifti_field,
    text_field,
    voxel,
    voxels,
    write,
    wrong_check_sum,
)

_READERS = {".nii.gz": "SimpleITKIO", ".nii": "NibabelIO", ".tif": "Tiff3DIO"}  # by ending; else SimpleITKIO
_HUGE = [(42, "<h", 2000), (44, "<h", 2000), (46, "<h", 2000)]  # dim[1:4]
_PIXDIM = 80  # offset of the size of a voxel along x


def _load(ending: str, reader: str | None = None, label: bool = False) -> Callable[[Path], Said]:
    def load(folder: Path) -> None:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        from nnssl.data.check_case import load_case

        found = recursive_find_reader_writer_by_name(reader or _READERS.get(ending, "SimpleITKIO"))
        image, of_label = str(folder / f"imagesTr/case_0000{ending}"), str(folder / f"labelsTr/case{ending}")
        loaded = load_case(RawCase("case", (image,), of_label if label else None), found, 1, 0, {0, 1, 2})
        assert np.isfinite(loaded.image).all()

    return function(load, BadCase)


def _image(ending: str, fault: Fault | None, **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = write(folder / f"imagesTr/case_0000{ending}", **{"values": voxels(), **options})
        if fault is not None:
            fault(file)

    return make


def _row(name: str, ending: str, fault: Fault | None, *expected: str, reader: str | None = None, **options: Any) -> Row:
    title = f"{name} {ending}{f' {reader}' if reader else ''}{'' if options.get('compressed', True) else ' raw'}"
    return Row(title, _image(ending, fault, **options), _load(ending, reader), expected, 1)


def _damaged() -> Iterator[Row]:
    formats = [(".nii.gz", True), (".nii", False), (".mha", True), (".mha", False), (".nrrd", True), (".nrrd", False),
               (".gipl", False), (".tif", True), (".tif", False)]  # fmt: skip
    for ending, compressed in formats:
        for part in (0.5, 0.97):
            for kind in (np.int16, np.float32):
                if ending != ".gipl" or kind == np.int16:
                    yield _row(f"cut {part} {kind.__name__}", ending, cut(part), f"case_0000{ending}", "cut",
                               values=voxels(kind), compressed=compressed)  # fmt: skip
        if compressed and ending != ".tif":
            yield _row("flipped bytes", ending, flip(0.6), f"case_0000{ending}", "damaged", compressed=True)
        yield _row("nothing", ending, cut(0), f"case_0000{ending}", compressed=compressed)
        yield _row("a tenth of its header", ending, cut(0.002), f"case_0000{ending}", compressed=compressed)
    yield _row("wrong check sum", ".nii.gz", wrong_check_sum, "damaged", "case_0000.nii.gz")
    yield _row("wrong check sum", ".nii.gz", wrong_check_sum, "damaged", reader="NibabelIO")
    yield _row("cut 0.5 int16", ".nii.gz", cut(0.5), "cut", reader="NibabelIO")
    yield _row("another format", ".nii.gz", lambda f: f.write_bytes(b"%PDF-1.4 no image" * 50), "unreadable image")
    yield _row("bytes of a text", ".mha", lambda f: f.write_bytes(b"hello" * 200), "unreadable image")


def _too_large() -> Iterator[Row]:
    yield _row("2000 cubed over 1 kB", ".nii.gz", nifti_field(*_HUGE), "cut", "16,000,000,000")
    yield _row("2000 cubed over 1 kB", ".nii.gz", nifti_field(*_HUGE), "16,000,000,000", reader="NibabelIO")
    yield _row("2000 cubed over 1 kB", ".nii", nifti_field(*_HUGE), "16,000,000,000", compressed=False)
    sizes = b"DimSize = 31 20 10", b"DimSize = 2000 2000 2000"
    yield _row("2000 cubed over 1 kB", ".mha", text_field(*sizes), "16,000,000,000")
    yield _row("2000 cubed over 1 kB", ".mha", text_field(*sizes), "16,000,000,000", compressed=False)
    sizes = b"sizes: 31 20 10", b"sizes: 2000 2000 2000"
    yield _row("2000 cubed over 1 kB", ".nrrd", text_field(*sizes), "16,000,000,000")
    yield _row("2000 cubed over 1 kB", ".nrrd", text_field(*sizes), "16,000,000,000", compressed=False)
    yield _row("no voxels", ".nii", nifti_field((42, "<h", 0)), "damaged", "0x20x10", compressed=False)
    yield _row("a negative size", ".nii", nifti_field((42, "<h", -31)), "damaged", "-31x20x10", compressed=False)
    yield _row("half of its size", ".nii", nifti_field((46, "<h", 5)), "more than", compressed=False)
    yield _row("an unknown type", ".nii", nifti_field((70, "<h", 77)), "damaged", "type 77", compressed=False)


def _accepted() -> Iterator[Row]:
    no_sum = "the format has no check sum, and the voxels are numbers like any other"
    for ending in (".nii", ".mha", ".nrrd", ".gipl"):
        yield Row(
            f"flipped bytes {ending} raw", _image(ending, flip(0.6), compressed=False), _load(ending), (), 0, no_sum
        )
    padded = _image(".nii", lambda file: file.write_bytes(file.read_bytes() + bytes(1000)), compressed=False)
    yield Row("padding .nii raw", padded, _load(".nii"), (), 0, "writers pad to the end of a block")
    negative = _image(".nii.gz", nifti_field((_PIXDIM, "<f", -0.7)))
    yield Row("a negative spacing .nii.gz", negative, _load(".nii.gz"), (), 0, "nnU-Net takes its amount")


def _spacing() -> Iterator[Row]:
    for reader in ("SimpleITKIO", "NibabelIO"):
        for value, said in ((0.0, "not positive"), (np.nan, "not positive"), (np.inf, "not positive"),
                            (1e6, "1e+06"), (1e-9, "1e-09")):  # fmt: skip
            yield _row(f"spacing {value:g}", ".nii.gz", nifti_field((_PIXDIM, "<f", value)), "spacing", said,
                       reader=reader)  # fmt: skip
    for text in (b"0", b"nan", b"1e6"):
        yield _row(f"spacing {text.decode()}", ".mha", _spacing_of_mha(text), "case_0000.mha")
    for content, said in (('{"spacing": [0, 1, 1]}', "not positive"), ('{"spacing": 3}', "case.json"),
                          ('{"spacing": ["a", 1, 1]}', "case.json"), ("{", "case.json"),
                          ('{"spacing": [1e6, 1, 1]}', "1e+06")):  # fmt: skip
        yield _row(f"spacing {content}", ".tif", _beside(content), said)


def _spacing_of_mha(value: bytes) -> Fault:
    def change(file: Path) -> None:
        lines = file.read_bytes().split(b"\n", 14)
        file.write_bytes(b"\n".join(
            b"ElementSpacing = " + value + b" 0.8 3.1" if line.startswith(b"ElementSpacing") else line for line in lines
        ))  # fmt: skip

    return change


def _beside(content: str) -> Fault:
    return lambda file: file.with_name("case.json").write_text(content)


def _voxels() -> Iterator[Row]:
    for ending in (".nii.gz", ".nii", ".mha", ".nrrd", ".tif"):
        for value, said in ((1e38, "1e+38"), (np.nan, "non-finite"), (-np.inf, "non-finite")):
            yield _row(f"a voxel of {value:g}", ending, None, said, values=voxel(value))
    yield _row("a voxel of 1e200", ".mha", None, "1e+200", values=voxel(1e200, np.float64))
    scaled = nifti_field((112, "<f", 1e30))
    yield _row("voxels scaled by 1e30", ".nii.gz", scaled, "1e+12")
    three = np.stack([voxels()] * 3, -1)
    for ending in (".nii.gz", ".mha", ".nrrd"):
        yield _row("vectors", ending, None, "vectors", values=three.astype(np.float32), vectors=True)
        yield _row("colours", ending, None, "colours", values=three.astype(np.uint8), vectors=True)
    yield _row("colours", ".nii.gz", None, "colours", values=three.astype(np.uint8), vectors=True, reader="NibabelIO")
    yield _row("colours", ".tif", None, "colours", values=np.abs(three).astype(np.uint8))
    for ending in (".nii.gz", ".mha"):
        yield _row("complex numbers", ending, None, "complex", values=voxels().astype(np.complex64))
    yield _row("complex numbers", ".nii.gz", None, "complex", values=voxels().astype(np.complex64), reader="NibabelIO")


def _grids() -> Iterator[Row]:
    sheared = [[0.7, 0.0, 0.9], [0.0, 0.8, 0.0], [0.0, 0.0, 3.1]]
    yield _row("sheared", ".nii.gz", affine(sheared), "sheared")
    yield _row("sheared", ".nii.gz", affine(sheared), "sheared", reader="NibabelIO")
    yield _row("sheared", ".mha", text_field(b"0 0 0 1\n", b"0.2 0 0 1\n"), "sheared")
    broken = [[np.nan, 0.0, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 3.1]]
    yield _row("an affine of NaN", ".nii.gz", affine(broken), "affine", reader="NibabelIO")
    yield _row("an affine of NaN", ".nii.gz", affine(broken), "case_0000.nii.gz")


def _labels() -> Iterator[Row]:
    for ending in (".nii.gz", ".mha", ".nrrd"):
        for name, fault, said in (("cut", cut(0.5), "cut"), ("flipped bytes in", flip(0.95), "damaged")):
            yield _with_label(f"{name} a label {ending}", ending, labels(), fault, "label", f"case{ending}", said)
    yield _with_label("a cut label .tif", ".tif", labels(), cut(0.5), "unreadable label", "case.tif")
    for name, values, said in (
        ("another value", np.where(labels() == 2, 7, labels()), "values 7"),
        ("a fraction", np.where(labels() == 2, 1.5, labels()).astype(np.float32), "values 1.5"),
        ("a negative value", np.where(labels() == 2, -1, labels().astype(np.int16)), "values -1"),
        ("many values", np.arange(6200, dtype=np.int16).reshape(10, 20, 31), "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ..."),
        ("NaN", np.where(labels() == 2, np.nan, labels()).astype(np.float32), "non-finite"),
        ("another shape", labels()[:, 1:], "another shape: 10x19x31"),
    ):
        for ending in (".nii.gz", ".mha"):
            yield _with_label(f"a label with {name} {ending}", ending, values, None, "label", said)
    yield _with_label("a label with another spacing", ".nii.gz", labels(), None, "another spacing", "5 x 0.8 x 0.7",
                      spacing=(0.7, 0.8, 5.0))  # fmt: skip
    yield _with_label("a label of vectors", ".nii.gz", np.stack([labels()] * 2, -1), None, "vectors", "label",
                      vectors=True)  # fmt: skip


def _with_label(name: str, ending: str, values: np.ndarray, fault: Fault | None, *expected: str, **options: Any) -> Row:
    def make(folder: Path) -> None:
        write(folder / f"imagesTr/case_0000{ending}", voxels())
        file = write(folder / f"labelsTr/case{ending}", values, **options)
        if fault is not None:
            fault(file)

    return Row(name, make, _load(ending, label=True), expected, 1)


ROWS = [row for rows in (_damaged, _too_large, _accepted, _spacing, _voxels, _grids, _labels) for row in rows()]

"""Rows for images and label maps that a command meets among healthy ones: one run, a row for each of them."""

from __future__ import annotations

import functools
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.bad_inputs.rows import FOLDERS, Row, Said, command, function
from tests.bad_inputs.volumes import (
    Fault,
    cut,
    fifo,
    flip,
    geometry,
    labels,
    link_to_nothing,
    nifti_field,
    voxel,
    voxels,
    write,
)
from tests.pretrainings import tiny_plans, write_pretraining

_MIRRORED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
_PLAN = ("plan_and_preprocess", "-p", "nnsslPlans_tiny", "-np", "1")
_DATA: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
_LABELLED = {**_DATA, "labels": {"background": 0, "a": 1, "b": 2}}


@dataclass(frozen=True)
class Batch:
    """Inputs that one run of a command meets together.

    Args:
        name: begins the names of its rows.
        make: writes all of them to a folder.
        run: the command.
        code: its exit code.
        said: what one line must have, by what is wrong.
        intent: why it is accepted; only with code 0.
    """

    name: str
    make: Callable[[Path], object]
    run: Callable[[Path], Said]
    code: int
    said: Mapping[str, tuple[str, ...]]
    intent: str = ""

    def rows(self) -> Iterator[Row]:
        once = functools.cache(self._once)
        for what, expected in self.said.items():
            yield Row(f"{self.name}: {what}", lambda _: None, lambda _: once(), expected, self.code, self.intent)

    def _once(self) -> Said:
        with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ):
            folder = Path(name)
            for variable, part in FOLDERS.items():
                (folder / part).mkdir()
                os.environ[variable] = str(folder / part)
            self.make(folder)
            return self.run(folder)


def _dataset(folder: Path, name: str, content: dict[str, Any], cases: int, labelled: bool = False) -> Path:
    home = folder / "raw" / name
    for i in range(cases):
        for channel in range(len(content["channel_names"])):
            write(home / f"imagesTr/good_{i}_{channel:04d}.nii.gz", voxels(seed=i))
        if labelled:
            write(home / f"labelsTr/good_{i}.nii.gz", labels())
    (home / "dataset.json").write_text(json.dumps(content))
    return home


def _odd_files(folder: Path, ending: str = ".nii.gz") -> None:
    """No regular files, and none with a name that is text; named like images."""
    os.mkfifo(folder / f"fifo_0000{ending}")
    (folder / f"device_0000{ending}").symlink_to("/dev/zero")
    (folder / f"dangling_0000{ending}").symlink_to("nowhere")
    (folder / f"folder_0000{ending}").mkdir()
    (folder / f"loop_0000{ending}").symlink_to(f"loop_0000{ending}")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket may be no longer than a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(f"socket_0000{ending}")
    finally:
        os.chdir(here)
    with open(os.fsencode(folder) + b"/caf\xe9_0000" + ending.encode(), "wb") as file:
        file.write(b"x")


_ODD = {"a FIFO": ("fifo", "is a FIFO"), "a device": ("device", "is a device"),
        "a link to nothing": ("dangling", "link to a file that does not exist"),
        "a folder": ("folder", "is a folder"), "a link to itself": ("loop", "cannot be looked at"),
        "a socket": ("socket", "is a socket"), "a name that is not UTF-8": (r"caf\xe9", "not UTF-8")}  # fmt: skip


def _bad_images(folder: Path) -> None:
    faults: dict[str, tuple[np.ndarray, Fault | None]] = {
        "cut": (voxels(), cut(0.5)),
        "float": (voxels(np.float32), cut(0.9)),
        "flipped": (voxels(), flip(0.6)),
        "empty": (voxels(), cut(0)),
        "huge": (voxels(), nifti_field((42, "<h", 2000), (44, "<h", 2000), (46, "<h", 2000))),
        # no affine that says otherwise: sform_code 0
        "far": (voxels(), nifti_field((254, "<h", 0), *((80 + 4 * i, "<f", 9e3) for i in range(3)))),
        "near": (voxels(), nifti_field((254, "<h", 0), (80, "<f", 1e-5))),
        "two": (voxels(), nifti_field((80, "<f", 2000.0))),
        "nan": (voxel(np.nan), None),
        "large": (voxel(1e38), None),
        "colour": (np.stack([voxels()] * 3, -1).astype(np.uint8), None),
    }
    for name, (values, fault) in faults.items():
        file = write(folder / f"{name}_0000.nii.gz", values, vectors=values.ndim == 4)
        if fault is not None:
            fault(file)


_BAD = {"cut": ("cut", "cut:"), "cut floats": ("float", "cut:"), "flipped bytes": ("flipped", "damaged"),
        "nothing": ("empty", "cut:"), "2000 cubed over 1 kB": ("huge", "16,000,000,000"),
        "a spacing that fills the memory": ("far", "plans' spacing", "GB"),
        "a spacing of almost nothing": ("near", "plans' spacing", "0 voxels"), "NaN": ("nan", "non-finite"),
        "two spacings": ("two", "2000 x 0.8 x 3.1", "0.7 x 0.8 x 3.1"),
        "a voxel of 1e38": ("large", "1e+38"), "colours": ("colour", "colours")}  # fmt: skip


def _unlabelled(folder: Path) -> None:
    images = _dataset(folder, "Dataset501_Odd", _DATA, 2) / "imagesTr"
    _bad_images(images)
    _odd_files(images)
    write(images / "other_0000.nii.gz", voxels()).rename(images / "other_0000.NII.GZ")
    write(images / "third_0000.nii", voxels())
    (images / "below").mkdir()
    write(images / "unnumbered.nii.gz", voxels())


def _bad_labels(folder: Path) -> None:
    home = _dataset(folder, "Dataset017_Labels", _LABELLED, 2, labelled=True)
    maps: dict[str, tuple[np.ndarray, Fault | None]] = {
        "cut": (labels(), cut(0.5)),
        "value": (np.where(labels() == 2, 7, labels()), None),
        "fraction": (np.where(labels() == 2, 1.5, labels()).astype(np.float32), None),
        "negative": (np.where(labels() == 2, -1, labels().astype(np.int16)), None),
        "shape": (labels()[1:], None),
        "spacing": (labels(), geometry(Spacing=(0.7, 0.8, 5.0))),
        "fifo": (labels(), fifo),
        "link": (labels(), link_to_nothing),
    }
    for name, (values, fault) in maps.items():
        write(home / f"imagesTr/{name}_0000.nii.gz", voxels())
        file = write(home / f"labelsTr/{name}.nii.gz", values)
        if fault is not None:
            fault(file)
    write(home / "labelsTr/lonely.nii.gz", labels())
    (home / "labelsTr/notes.txt").write_text("by the second reader")


def _elsewhere(folder: Path) -> None:
    home = _dataset(folder, "Dataset017_Elsewhere", _LABELLED, 4, labelled=True)
    geometry(Direction=_MIRRORED)(home / "labelsTr/good_1.nii.gz")
    geometry(Origin=(60.0, 15.0, 4.0))(home / "labelsTr/good_2.nii.gz")
    nifti_field((80, "<f", 0.9))(home / "imagesTr/good_3_0000.nii.gz")  # the affine still says 0.7
    nifti_field((80, "<f", 0.9))(home / "labelsTr/good_3.nii.gz")
    write(home / "labelsTr/lonely.nii.gz", labels())


_APART = {"a label of another direction": ("good_1", "degrees"), "a label of another origin": ("good_2", "80 mm"),
          "a header that says two spacings": ("good_3", "0.9 x 0.8 x 3.1")}  # fmt: skip


def _channels(folder: Path) -> None:
    home = _dataset(folder, "Dataset502_Two", {**_DATA, "channel_names": {"0": "T1", "1": "T2"}}, 6)
    geometry(Origin=(60.0, 15.0, 4.0))(home / "imagesTr/good_1_0001.nii.gz")
    geometry(Direction=_MIRRORED)(home / "imagesTr/good_2_0001.nii.gz")
    geometry(Spacing=(0.7, 0.8, 5.0))(home / "imagesTr/good_3_0001.nii.gz")
    write(home / "imagesTr/good_4_0001.nii.gz", voxels()[1:])
    (home / "imagesTr/good_5_0001.nii.gz").unlink()
    os.mkfifo(home / "imagesTr/good_5_0001.nii.gz")


def _run_and_images(folder: Path) -> None:
    write_pretraining(folder / "res", tiny_plans(patch_size=[8, 16, 16]), method="sam").parent.rename(folder / "run")
    write(folder / "images/good_0000.nii.gz", voxels())
    _bad_images(folder / "images")
    _odd_files(folder / "images")


def _label_folders(folder: Path, *odd: Callable[[Path], object]) -> None:
    from tests.benchmarking.labels import describe

    describe(folder / "predicted", labels=_LABELLED["labels"])
    for name in ("true", "predicted"):
        write(folder / name / "case.nii.gz", labels())
    for change in odd:
        change(folder / "predicted/case.nii.gz")


def _evaluation(what: str, change: Fault, *expected: str) -> Row:
    said = ("error: ", "predicted/case.nii.gz", *expected)
    return Row(f"evaluate: {what}", lambda folder: _label_folders(folder, change),
               command("evaluate", "{}/true", "{}/predicted"), said, 1)  # fmt: skip


def _single_rows() -> Iterator[Row]:
    yield _evaluation("a cut label map", cut(0.5), "cut")
    yield _evaluation("a FIFO", fifo, "FIFO")
    yield _evaluation("another value", lambda file: write(file, labels() * 3), "3, 6")
    yield _evaluation("a fraction", lambda file: write(file, labels() * np.float32(1.5)), "1.5, 3")
    yield _evaluation("another spacing", geometry(Spacing=(0.7, 0.8, 5.0)), "another spacing")
    for action in ("propose", "check"):
        yield Row(f"annotated_labels {action}: label maps that cannot be used", _annotated(action == "check"),
                  command("annotated_labels", action, "-d", "17", "-np", "1"),
                  ("error: ", "cut.nii.gz", "value.nii.gz", "values 7"), 1)  # fmt: skip
    for what, fault, said in (("cut", cut(0.5), "cut"), ("no folder of images", Path.unlink, "there is no image")):
        argv = ("-m", "{}/run", "-q", "{}/query_0000.nii.gz", "-k", "{}/key_0000.nii.gz", "-p", "1", "1", "1")
        yield Row(f"match: {what}", _query(fault), command("match", *argv, "--voxel"), ("error: ", "query", said), 1)
    yield Row("visualize: a cut label map", lambda folder: cut(0.5)(write(folder / "x.nii.gz", labels())),
              function(_read_label), ("x.nii.gz", "cut"), 1)  # fmt: skip
    every = Batch("plan_and_preprocess nothing but bad images", _nothing_good, command(*_PLAN, "-d", "501"), 1,
                  {"all": ("error: ", "Dataset501_Bad", "cut")})  # fmt: skip
    yield from every.rows()


def _annotated(with_list: bool) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        home = _dataset(folder, "Dataset017_Labels", _LABELLED, 1, labelled=True)
        for name in ("cut", "value"):
            write(home / f"imagesTr/{name}_0000.nii.gz", voxels())
            write(home / f"labelsTr/{name}.nii.gz", labels() if name == "cut" else np.where(labels() == 2, 7, labels()))
        cut(0.5)(home / "labelsTr/cut.nii.gz")
        if with_list:
            listed = {"annotated_labels": {"cut": ["a"], "value": ["a"]}}
            (home / "dataset.json").write_text(json.dumps(_LABELLED | listed))

    return make


def _query(fault: Fault) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        plans = tiny_plans(patch_size=[8, 16, 16])
        write_pretraining(folder / "res", plans, method="sam").parent.rename(folder / "run")
        for name in ("query", "key"):
            write(folder / f"{name}_0000.nii.gz", voxels())
        fault(folder / "query_0000.nii.gz")

    return make


def _images_un(folder: Path) -> None:
    home = _dataset(folder, "Dataset017_Labels", _LABELLED, 2, labelled=True)
    write(home / "imagesUn/good_0000.nii.gz", voxels(seed=9))
    _bad_images(home / "imagesUn")
    _odd_files(home / "imagesUn")


def _distil(folder: Path) -> None:
    """What a training with a teacher does with imagesUn before its first epoch."""
    from nnssl.data.plan_and_preprocess import plan_and_preprocess
    from nnssl.finetuning.unlabelled import prepare_unlabelled

    (made,) = plan_and_preprocess([17], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    plans = json.loads((made.folder.parent / "nnsslPlans_tiny.json").read_text())
    with mock.patch("nnssl.finetuning.unlabelled.default_processes", lambda: 1):  # others take seconds to start
        found = prepare_unlabelled(plans, "3d_fullres", made.folder.parent, True, print)
    assert found.cases == ["good"]


def _read_label(folder: Path) -> None:
    from nnssl.analysis.points import read_labels

    read_labels(folder / "x.nii.gz", None)  # type: ignore[arg-type]


def _nothing_good(folder: Path) -> None:
    home = _dataset(folder, "Dataset501_Bad", _DATA, 2)
    for file in (home / "imagesTr").iterdir():
        cut(0.5)(file)


_WARNED = "nnU-Net's integrity check warns of it too; the difference is said and in the report"
_BATCHES = [
    Batch("plan_and_preprocess", _unlabelled, command(*_PLAN, "-d", "501"), 3,
          {**{what: ("left out: " + said[0], *said[1:]) for what, said in (_BAD | _ODD).items()},
           "no channel number": ("left out: unnumbered", "channel number"),
           "another ending": ("imagesTr/third_0000.nii", "does not end in .nii.gz"),
           ".NII.GZ": ("imagesTr/other_0000.NII.GZ", "rename"), "a sub-folder": ("imagesTr/below", "is a folder")}),
    Batch("plan_and_preprocess labels", _bad_labels, command(*_PLAN, "-d", "17"), 3,
          {"cut": ("left out: cut", "unreadable label", "cut:"), "another value": ("left out: value", "values 7"),
           "a fraction": ("left out: fraction", "values 1.5"), "a negative value": ("left out: negative", "values -1"),
           "another shape": ("left out: shape", "9x20x31"), "another spacing": ("left out: spacing", "5 x 0.8 x 0.7"),
           "a FIFO": ("left out: fifo", "its label", "is a FIFO"),
           "a link to nothing": ("left out: link", "unreadable label"),
           "without an image": ("labelsTr/lonely.nii.gz", "without an image"),
           "another ending": ("labelsTr/notes.txt", "does not end in .nii.gz")}),
    Batch("plan_and_preprocess elsewhere", _elsewhere, command(*_PLAN, "-d", "17"), 0,
          _APART | {"a label without an image": ("lonely.nii.gz", "without an image")}, _WARNED),
    Batch("plan_and_preprocess --strict", _elsewhere, command(*_PLAN, "-d", "17", "--strict"), 1,
          {what: ("error: ", "--strict", *said) for what, said in _APART.items()}),
    Batch("plan_and_preprocess channels", _channels, command(*_PLAN, "-d", "502"), 3,
          {"another origin": ("good_1", "0001.nii.gz is elsewhere", "80 mm"),
           "another direction": ("good_2", "0001.nii.gz is elsewhere", "degrees"),
           "another spacing": ("left out: good_3", "channels of different spacings"),
           "another shape": ("left out: good_4", "channels of different shapes"),
           "a FIFO": ("left out: good_5", "0001.nii.gz is a FIFO")}),
    Batch("imagesUn", _images_un, function(_distil), 0,
          {what: ("imagesUn/" + said[0] + " is left out", *said[1:]) for what, said in (_BAD | _ODD).items()},
          "the training goes on with the others"),
    Batch("embed", _run_and_images, command("embed", "-m", "{}/run", "-i", "{}/images", "-o", "{}/out", "-device",
                                            "cpu"), 3,
          {what: (said[0] + " is left out", *said[1:]) for what, said in (_BAD | _ODD).items()}),
]  # fmt: skip

ROWS = [row for batch in _BATCHES for row in batch.rows()] + list(_single_rows())

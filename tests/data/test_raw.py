from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.raw import (
    RawCase,
    first_ct_channel,
    label_values,
    number_of_labels,
    read_dataset_json,
    read_raw_dataset,
    read_unlabelled,
)


def _dataset(folder: Path, files: list[str], channels: int = 1, labels: tuple[str, ...] = (), **more: object) -> Path:
    """Empty files: listing must not open them."""
    (folder / "imagesTr").mkdir(parents=True)
    content = {"channel_names": {str(c): f"T{c}" for c in range(channels)}, "labels": {"background": 0}}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz", **more}))
    for file in files:
        (folder / "imagesTr" / file).write_text("")
    if labels:
        (folder / "labelsTr").mkdir()
    for label in labels:
        (folder / "labelsTr" / label).write_text("")
    return folder


def test_read_raw_dataset__without_labels(tmp_path: Path) -> None:
    folder = _dataset(tmp_path / "D", ["b_0000.nii.gz", "a_1_0000.nii.gz", "a_1.json"])
    dataset = read_raw_dataset(tmp_path, "D")
    assert list(dataset.cases) == ["a_1", "b"]
    assert dataset.cases["b"] == RawCase("b", (str(folder / "imagesTr" / "b_0000.nii.gz"),))
    assert not dataset.labelled
    assert dataset.left_out == {}
    assert dataset.ct_channel is None


def test_read_raw_dataset__labelled_leaves_out_cases_without_label(tmp_path: Path) -> None:
    folder = _dataset(tmp_path / "D", ["a_0000.nii.gz", "b_0000.nii.gz"], labels=("a.nii.gz",))
    dataset = read_raw_dataset(tmp_path, "D")
    assert dataset.labelled
    assert dataset.cases == {
        "a": RawCase("a", (str(folder / "imagesTr" / "a_0000.nii.gz"),), str(folder / "labelsTr" / "a.nii.gz"))
    }
    assert "no label" in dataset.left_out["b"]


def test_read_raw_dataset__missing_channel_is_left_out(tmp_path: Path) -> None:
    files = ["a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz", "d_0000.nii.gz", "d_0002.nii.gz"]
    _dataset(tmp_path / "D", files, channels=2)
    dataset = read_raw_dataset(tmp_path, "D")
    assert [len(case.images) for case in dataset.cases.values()] == [2, 1]  # c may be a 4-D file with both
    assert set(dataset.left_out) == {"b", "d"}
    assert dataset.left_out["d"] == (
        "wrong channels: has 0000 0002, needs 0000 0001; a file's name is that of its case and 0000 before .nii.gz"
    )


def test_read_raw_dataset__odd_names_are_left_out(tmp_path: Path) -> None:
    _dataset(tmp_path / "D", ["a_0000.nii.gz", "b.nii.gz", "c_seg_0000.nii.gz", "._a_0000.nii.gz", "x\ny_0000.nii.gz"])
    dataset = read_raw_dataset(tmp_path, "D")
    assert set(dataset.cases) == {"a"}
    assert "channel number" in dataset.left_out["b"]
    assert "_seg" in dataset.left_out["c_seg"]
    assert "begins with a dot" in dataset.left_out["._a"] and "control character" in dataset.left_out["'x\\ny'"]


def test_read_raw_dataset__names_in_the_key_dataset_that_leave_the_folder(tmp_path: Path) -> None:
    """nnU-Net and this package would make paths of them: the whole file is refused, with every bad name."""
    bad = ["../x", "/etc", "a/b", "", ".", "x_seg", "c\\d"]
    _dataset(tmp_path / "D", [], dataset={name: {"images": ["imagesTr/x.nii.gz"]} for name in ("good", *bad)})
    with pytest.raises(UserError) as error:
        read_raw_dataset(tmp_path, "D")
    for name in bad:
        assert f"dataset.{name if name.isidentifier() else repr(name)}:" in str(error.value)
    assert "good" not in str(error.value)


def test_read_raw_dataset__case_names_that_differ_in_case_only(tmp_path: Path) -> None:
    _dataset(tmp_path / "D", ["Case (1) [ä].x_0000.nii.gz", "case (1) [ä].x_0000.nii.gz"])
    assert len(read_raw_dataset(tmp_path, "D").cases) == 2


def test_read_raw_dataset__key_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "far"))
    listing = {
        "b": {"images": ["imagesTr/x.nii.gz"], "label": None},
        "a": {"images": ["$ELSEWHERE/y.nii.gz"]},
    }
    folder = _dataset(tmp_path / "D", [], dataset=listing)
    dataset = read_raw_dataset(tmp_path, "D")
    assert dataset.cases == {
        "a": RawCase("a", (str(tmp_path / "far" / "y.nii.gz"),)),
        "b": RawCase("b", (str(folder / "imagesTr" / "x.nii.gz"),)),
    }
    assert list(dataset.cases) == ["a", "b"]


@pytest.mark.parametrize("listing", [{"a": {"label": "x"}}, {"a": "x.nii.gz"}, {}])
def test_read_raw_dataset__wrong_key_dataset(tmp_path: Path, listing: dict[str, object]) -> None:
    _dataset(tmp_path / "D", [], dataset=listing)
    with pytest.raises(UserError, match=r"dataset\.a|lists no case"):
        read_raw_dataset(tmp_path, "D")


def test_read_raw_dataset__no_images_of_the_ending(tmp_path: Path) -> None:
    _dataset(tmp_path / "D", ["a_0000.nii", "b_0000.nii"])
    with pytest.raises(UserError, match=r"2 of \.nii"):
        read_raw_dataset(tmp_path, "D")


def test_read_raw_dataset__no_images_at_all(tmp_path: Path) -> None:
    _dataset(tmp_path / "D", [])
    with pytest.raises(UserError, match="holds no images"):
        read_raw_dataset(tmp_path, "D")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("{", "not valid JSON"),
        ("[]", "object"),
        ('{"labels": {"background": 0}}', "channel_names.*file_ending"),
        ('{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}', "labels: is missing"),
        ('{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": {"liver": 1}}', "background"),
    ],
)
def test_read_dataset_json__wrong(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_dataset_json(tmp_path)


def test_first_ct_channel() -> None:
    assert first_ct_channel(["ZScoreNormalization", "CTNormalization", "CTNormalization"]) == 1
    assert first_ct_channel(["ZScoreNormalization"]) is None


def test_read_raw_dataset__files_of_no_case_are_named(tmp_path: Path) -> None:
    files = ["a_0000.nii.gz", "b_0000.NII.GZ", "c_0000.nii", "notes.txt", ".DS_Store"]
    folder = _dataset(tmp_path / "D", files, labels=("a.nii.gz", "z.nii.gz"))
    (folder / "imagesTr/more").mkdir()
    dataset = read_raw_dataset(tmp_path, "D")
    assert set(dataset.cases) == {"a"} and dataset.left_out == {}
    assert dataset.ignored.keys() == {
        "imagesTr/b_0000.NII.GZ", "imagesTr/c_0000.nii", "imagesTr/more", "imagesTr/notes.txt", "labelsTr/z.nii.gz"
    }  # fmt: skip
    assert "rename" in dataset.ignored["imagesTr/b_0000.NII.GZ"]
    assert dataset.ignored["labelsTr/z.nii.gz"] == "a label without an image"


def test_read_raw_dataset__what_belongs_to_an_image_is_not_named(tmp_path: Path) -> None:
    _dataset(tmp_path / "D", ["a_0000.tif", "a.json"], file_ending=".tif")
    assert read_raw_dataset(tmp_path, "D").ignored == {}
    _dataset(tmp_path / "E", ["a_0000.mhd", "a_0000.zraw"], file_ending=".mhd")
    assert read_raw_dataset(tmp_path, "E").ignored == {}


def test_read_raw_dataset__no_regular_files_are_left_out_and_not_opened(tmp_path: Path) -> None:
    folder = _dataset(
        tmp_path / "D", ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz"], 2, labels=("a.nii.gz", "c.nii.gz")
    )
    os.mkfifo(folder / "imagesTr/b_0001.nii.gz")  # not a 4-D file with both channels
    for channel in ("0000", "0001"):  # their disk may only be away
        (folder / f"imagesTr/c_{channel}.nii.gz").symlink_to("nowhere")
    (folder / "imagesTr/d_0000.nii.gz").symlink_to("a_0000.nii.gz")
    os.mkfifo(folder / "labelsTr/d.nii.gz")
    with open(os.fsencode(folder) + b"/imagesTr/caf\xe9_0000.nii.gz", "w"):
        pass
    dataset = read_raw_dataset(tmp_path, "D")
    assert set(dataset.cases) == {"a", "c"}
    assert {name: re.sub(".* (is|has) ", "", reason) for name, reason in dataset.left_out.items()} == {
        "b": "a FIFO", "d": "a FIFO", r"caf\xe9": "not UTF-8",
    }  # fmt: skip


def test_read_unlabelled__names_what_it_does_not_use(tmp_path: Path) -> None:
    folder = _dataset(tmp_path / "D", ["a_0000.nii.gz"])
    content = read_dataset_json(folder)
    assert read_unlabelled(folder, content) == ({}, {})
    (folder / "imagesUn").mkdir()
    for file in ("a_0000.nii.gz", "b_0000.NII.GZ"):
        (folder / "imagesUn" / file).touch()
    os.mkfifo(folder / "imagesUn/c_0000.nii.gz")
    cases, left_out = read_unlabelled(folder, content)
    assert set(cases) == {"a"} and left_out.keys() == {"b_0000.NII.GZ", "c"}


def test_label_values__labels_regions_and_the_ignored_one() -> None:
    assert label_values({"labels": {"background": 0, "a": 1, "ignore": 2}}) == {0, 1, 2}
    assert label_values({"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}}) == set(range(5))


def test_number_of_labels__by_names_alone(tmp_path: Path) -> None:
    assert number_of_labels(tmp_path) == 0  # no dataset.json
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nrrd"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert number_of_labels(tmp_path) == 0  # no labelsTr
    (tmp_path / "labelsTr").mkdir()
    for name in ("a.nrrd", "b.nrrd", "._a.nrrd", "b.nii.gz"):
        (tmp_path / "labelsTr" / name).touch()
    assert number_of_labels(tmp_path) == 2
    elsewhere = {"a": {"images": ["x.nrrd"], "label": "y.nrrd"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"dataset": elsewhere}))
    assert number_of_labels(tmp_path) == 1
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0}}))
    assert number_of_labels(tmp_path) == 0
    (tmp_path / "dataset.json").write_text("{")
    assert number_of_labels(tmp_path) == 0

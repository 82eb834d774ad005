from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.raw import RawCase
from nnssl.data.raw_files import CaseFiles, FileState
from nnssl.data.records import Record, Records, labels_digest, read_withdrawn, unused_cases, write_withdrawn

OLD = FileState(10, 5_000_000, "aa")


def _case(folder: Path, label: bool = True) -> RawCase:
    for name in ("x_0000", "x_0001", "x"):
        (folder / name).write_text(name)
    return RawCase("x", (str(folder / "x_0000"), str(folder / "x_0001")), str(folder / "x") if label else None)


@pytest.mark.parametrize(
    ("images", "label", "expected"),
    [
        ((OLD,), OLD, None),
        ((replace(OLD, time=9_000_000),), OLD, None),
        ((replace(OLD, digest=None),), OLD, None),
        ((replace(OLD, size=11),), OLD, "image"),
        ((replace(OLD, digest="bb"),), replace(OLD, digest="bb"), "image and label"),
        ((OLD,), replace(OLD, size=9), "label"),
        ((OLD,), None, "label"),
        ((OLD, OLD), OLD, "channels"),
    ],
)
def test_CaseFiles__what_is_another_file(
    images: tuple[FileState, ...], label: FileState | None, expected: str | None
) -> None:
    assert CaseFiles((OLD,), OLD).changed(CaseFiles(images, label)) == expected


def test_CaseFiles__a_time_is_compared_as_finely_as_every_file_system_keeps_it() -> None:
    before = CaseFiles((OLD,))
    assert before.doubtful(CaseFiles((replace(OLD, time=OLD.time + 999),))) == []
    assert before.doubtful(CaseFiles((replace(OLD, time=OLD.time + 1000),))) == [OLD]


def test_CaseFiles__hashes_tell_a_copy_from_a_correction(tmp_path: Path) -> None:
    case = _case(tmp_path)
    before = CaseFiles.of(case).hashed(case)
    os.utime(case.images[1], ns=(0, 0))
    now = CaseFiles.of(case)
    assert before.changed(now) is None and len(before.doubtful(now)) == 1
    assert before.changed(now.hashed(case)) is None
    Path(case.images[1]).write_text("X_0001")  # of the same size
    now = CaseFiles.of(case)
    assert before.changed(now) is None and before.changed(now.hashed(case, before)) == "image"


def test_CaseFiles__a_file_that_changes_while_it_is_read_counts_as_changed(tmp_path: Path) -> None:
    case = _case(tmp_path, label=False)
    early = CaseFiles.of(case)
    os.utime(case.images[0], ns=(7, 7))
    record = early.hashed(case)
    assert record.changed(CaseFiles.of(case).hashed(case)) == "image"


def test_Records__jobs_see_each_other_and_the_last_line_counts(tmp_path: Path) -> None:
    mine, other = (Records(tmp_path / "data") for _ in range(2))
    first = Record("é x", CaseFiles((OLD, OLD), OLD), "s", "l", "LPS", "now")
    mine.append([first, Record("b", None, reason="2-D")])
    assert other.get("é x") is None
    other.refresh()
    assert other.get("é x") == first and len(other.all()) == 2
    other.append([replace(first, begun=True)])
    mine.refresh()
    assert mine.get("é x") == replace(first, begun=True)
    mine.append([])
    assert Records(tmp_path / "data").get("b") == Record("b", None, reason="2-D")


def test_Records__a_line_that_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    records = Records(tmp_path / "data")
    records.append([Record("a", CaseFiles((OLD,)), "s")])
    with open(records.file, "ab") as file:  # of another version; of a full disk; of a job that was killed meanwhile
        file.write(b'{"case": "new", "warnings": ["odd"]}\n{"case": "a", "images": [[1]]}\n[3]\n{"case": "c", "ima')
    records.append([Record("d", None)])
    found = Records(tmp_path / "data")
    assert {record.case for record in found.all()} == {"a", "new", "d"}
    assert found.get("a") == Record("a", CaseFiles((OLD,)), "s")


def test_Records__an_unfinished_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    records = Records(tmp_path / "data")
    records.append([Record("a", None)])
    content = records.file.read_bytes()
    records.file.write_bytes(content + b'{"case": "b"')
    records.refresh()
    assert records.get("b") is None
    records.file.write_bytes(content + b'{"case": "b"}\n')
    records.refresh()
    assert records.get("b") == Record("b", None)


def test_Records__what_is_found_out_of_a_volume_counts_until_another_job_replaces_it(tmp_path: Path) -> None:
    records, other = (Records(tmp_path / "data") for _ in range(2))
    before = [Record(case, None, "plans", prepared="then") for case in "abc"]
    records.append(before)
    other.append([replace(before[1], begun=True), replace(before[2], prepared="now")])
    records.renew(replace(record, orientation="LPS") for record in before)
    assert [record.orientation for record in Records(tmp_path / "data").all()] == ["LPS", None, None]


def test_Records__dead_lines_are_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl.data.records._DEAD_LINES", 3)
    records, other = (Records(tmp_path / "data") for _ in range(2))
    for number in range(9):
        records.append([Record("a", None, prepared=str(number)), Record("b", None)])
    other.refresh()
    assert not Records(tmp_path / "none").crowded and other.crowded
    other.compact()
    assert len(other.file.read_text().splitlines()) == 2
    records.append([Record("c", None)])  # by a job that has read the former file
    records.refresh()
    assert not records.crowded and [r.case for r in records.all()] == ["a", "b", "c"]
    assert Records(tmp_path / "data").get("a") == Record("a", None, prepared="8")
    assert [file.name for file in records.file.parent.iterdir()] == ["records.jsonl"]


def test_Record__what_makes_a_volume_unfit() -> None:
    record = Record("a", None, "plans", "labels")
    assert record.unfit("plans", "labels") is None and record.unfit(None, None) is None
    assert "other plans" in str(record.unfit("others", "labels"))
    assert "other labels" in str(record.unfit("plans", "others"))
    assert replace(record, settings=None, labels=None).unfit("plans", "labels") is None
    assert replace(record, reason="2-D").unfit("plans", "labels") == "2-D"
    assert "interrupted" in str(replace(record, begun=True).unfit("plans", "labels"))


def test_labels_digest__values_and_regions_count_and_names_do_not() -> None:
    def digest(**labels: object) -> str:
        return labels_digest({"labels": {"background": 0, **labels}})

    assert digest(a=1, b=2) == digest(c=1, a=2) != digest(a=1, b=3)
    assert digest(a=1, b=[1, 2]) == digest(a=1, b=[2, 1]) != digest(a=1, b=2)
    assert digest(a=1, b=2) != digest(a=1, ignore=2)


def test_write_withdrawn__of_either_kind_and_gone_when_all_are_back(tmp_path: Path) -> None:
    write_withdrawn(tmp_path, [])
    assert not list(tmp_path.iterdir()) and read_withdrawn(tmp_path) == set()
    write_withdrawn(tmp_path, {"b", "a"})
    write_withdrawn(tmp_path, {"a"}, "imagesUn")
    assert (read_withdrawn(tmp_path), read_withdrawn(tmp_path, "imagesUn")) == ({"a", "b"}, {"a"})
    write_withdrawn(tmp_path, {"b"})
    write_withdrawn(tmp_path, [], "imagesUn")
    assert unused_cases(tmp_path / "data") == {"b": "its raw files are gone"}
    assert unused_cases(tmp_path / "data_unlabelled") == {}
    write_withdrawn(tmp_path, {"c"}, "imagesUn")  # another case of this name may be in imagesTr, without a label
    assert unused_cases(tmp_path / "data_imagesTr_unlabelled").keys() == {"b"}
    write_withdrawn(tmp_path, [], "imagesUn")
    write_withdrawn(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_unused_cases__for_plans(tmp_path: Path) -> None:
    Records(tmp_path / "data").append(
        [Record("good", None, "p"), Record("old", None, "q"), Record("bad", None, "p", reason="2-D"), Record("?", None)]
    )
    assert unused_cases(tmp_path / "data", "p").keys() == {"old", "bad"}
    assert unused_cases(tmp_path / "data").keys() == {"bad"}


def test_read_withdrawn__damaged(tmp_path: Path) -> None:
    (tmp_path / "nnssl_withdrawn.json").write_text("{")
    with pytest.raises(UserError, match=r"nnssl_withdrawn\.json.*nnssl_plan_and_preprocess"):
        unused_cases(tmp_path / "data")

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nnssl.classification.labels import Target, read_target
from nnssl.core.errors import UserError

IMAGES = ["a", "b", "c", "d"]


def _read(tmp_path: Path, text: str, target: str | None = None, task: str | None = None) -> Target:
    file = tmp_path / "labels.csv"
    file.write_text(text, encoding="utf-8-sig")
    return read_target(file, IMAGES, target, task)  # type: ignore[arg-type]


def test_read_target__names_are_classes_and_empty_cells_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nnssl")
    found = _read(tmp_path, "case;covid;age;group\nb;no;31;p1\n a ;yes;40,5;p1\nc;;7;\nd;no;8;\n", "covid")
    assert (found.cases, found.classes, found.values.tolist()) == (("a", "b", "d"), ("no", "yes"), [1, 0, 0])
    assert found.groups[0] == found.groups[1] == "p1" and found.groups[2] not in ("p1", "")
    assert "1 case has no covid" in caplog.text and "'no' 2, 'yes' 1" in caplog.text


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        ("1.5 2 -3e1 0", None, ()),
        ("0 1 1 0", None, ("0", "1")),  # two whole numbers
        ("0 1 2 0", None, ()),
        ("2 10 10 1", "classification", ("1", "2", "10")),
        ("0 1 1 0", "regression", ()),
        ("0 1.0 1 0.0", None, ("0", "1")),  # one class, written in two ways
        ("007 8 8.00 yes", "classification", ("007", "8", "yes")),
        (
            "99999999999999999998 99999999999999999999 99999999999999999999 99999999999999999998",
            None,
            ("99999999999999999998", "99999999999999999999"),
        ),  # which are the same float
    ],
)
def test_read_target__numbers(tmp_path: Path, cells: str, task: str | None, classes: tuple[str, ...]) -> None:
    rows = "".join(f"{case},{cell}\n" for case, cell in zip(IMAGES, cells.split(), strict=True))
    found = _read(tmp_path, f"case,value\n{rows}", task=task)
    assert found.classes == classes
    if not classes:
        assert found.values.tolist() == [float(cell) for cell in cells.split()]


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("name,covid\na,yes\n", None, "no column 'case'"),
        ("case\na\n", None, "no target"),
        ("case,x,y\na,1,2\n", None, "-target: x, y"),
        ("case,x\na,1\n", "y", "no target 'y'"),
        ("case,x,x\na,1,1\n", None, "twice"),
        ("case,x\na,1\na,2\n", None, "lines 2 and 3"),
        ("case,x\na,1\nz,2\n", None, "have no image in imagesTr ('z')"),
        ("case,x\na,yes\nb,yes\n", None, "nothing can be told apart"),
        ("case,x\na,1.5\nb,n/a\nc,3\n", None, "line 3: x of b is 'n/a'"),
        ("case,x\na,1.5\nb,nan\nc,3\n", None, "line 3: x of b is 'nan'"),
        ("case,x\na,yes\nb,NA\nc,no\n", None, "line 3: x of b is 'NA'"),
        ('case,x\na,yes\nb,"no\nc,no\nd,yes\n', None, "is no CSV"),
        ("case,x\na,\nb,\n", None, "'x' is empty"),
        ("case,x\na,TRUE\nb,true\nc,False\n", None, "'TRUE' and 'true', which differ in capitals only"),
        ("case,x\na,1\nb,2\nc,3e200\n", None, "line 4: x of c is '3e200', too large"),
        ("case,x\na,1,2\n", None, "line 2 has 3 cells"),
        ("case,x\n,1\n", None, "line 2 names no case"),
        ("case,x\n", None, "no case below"),
        ("case,a/b\na,1\nb,2\n", None, "separator of folders"),
        (f"case,{'x' * 101}\na,1\nb,2\n", None, "a shorter name"),
    ],
)
def test_read_target__mistakes(tmp_path: Path, text: str, target: str | None, said: str) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, text, target)
    assert said in str(error.value)


def test_read_target__no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_target(tmp_path / "labels.csv", IMAGES)
    (tmp_path / "labels.csv").write_bytes(b"case,x\na,\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_target(tmp_path / "labels.csv", IMAGES)


def test_read_target__images_without_a_line_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _read(tmp_path, "case,x\na,1.5\nb,2.5\n").cases == ("a", "b")
    assert "2 of 4 images have no line" in caplog.text and "c, d" in caplog.text

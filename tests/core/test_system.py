from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from nnssl.core.system import dispensable, name_file, unreadable, why


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.ENOENT, "missing"),
        (errno.EIO, "mount"),
        (errno.ESTALE, "mount"),
        (errno.ENOTCONN, "mount"),
        (errno.ETIMEDOUT, "mount"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EISDIR, "Is a directory"),
    ],
)
def test_why__path_reason_and_what_to_type(number: int, said: str) -> None:
    sentence = why(OSError(number, "x", "/data/file.pth"), "continue with --c")
    assert sentence is not None and "\n" not in sentence
    assert "/data/file.pth" in sentence and said in sentence and sentence.endswith("continue with --c")


def test_why__an_error_of_the_disk_needs_no_name_and_a_rename_has_two() -> None:
    assert "the output" in str(why(OSError(errno.ENOSPC, "full")))
    assert "/new" in str(why(OSError(errno.ENOENT, "gone", "/old", None, "/new")))
    assert "\\x" in str(why(OSError(errno.ENOENT, "gone", b"/\xff")).replace("\\udc", "\\x"))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, "no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8")]
)
def test_why__memory(error: BaseException) -> None:
    assert "not enough memory" in str(why(error))


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), OSError("x"), FileNotFoundError(errno.ENOENT, "of a socket")]
)
def test_why__anything_else_is_a_bug(error: BaseException) -> None:
    assert why(error) is None


def test_name_file__only_where_there_is_no_name(tmp_path: Path) -> None:
    named = name_file(OSError(errno.EIO, "x"), tmp_path)
    assert named.filename == str(tmp_path) and named.errno == errno.EIO
    assert name_file(named, Path("/other")) is named


def test_unreadable__the_systems_word_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    assert unreadable(tmp_path / "file") is None
    missing = unreadable(tmp_path / "none")
    assert isinstance(missing, FileNotFoundError) and str(tmp_path / "none") in str(missing)


def test_dispensable__a_warning_in_the_place_of_a_picture(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), dispensable("views.png"):
        raise OSError(errno.ENOSPC, "full", "/x/views.png")
    assert "views.png is left out" in caplog.text and "make room" in caplog.text
    with pytest.raises(ZeroDivisionError), dispensable("views.png"):
        raise ZeroDivisionError

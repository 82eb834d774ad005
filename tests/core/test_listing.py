from __future__ import annotations

import os
import stat
from pathlib import Path

from nnssl.core.system import Listing, list_folder, printable, why_no_file


def test_list_folder__regular_files_and_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    with open(os.fsencode(tmp_path) + b"/caf\xe9", "w"):
        pass
    listing = list_folder(tmp_path)
    assert listing.files == ["a", "b"]
    assert listing.odd == {
        r"caf\xe9": "has a name that is not UTF-8", "fifo": "is a FIFO", "folder": "is a folder",
        "link": "is a link to a file that does not exist",
    }  # fmt: skip
    assert list_folder(tmp_path / "b") == list_folder(tmp_path / "nowhere") == Listing()


def test_why_no_file__any_path(tmp_path: Path) -> None:
    assert why_no_file(__file__) is None
    assert why_no_file(tmp_path / "x") == "does not exist"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and why_no_file("/dev/null") == "is a device"
    assert "cannot be looked at" in str(why_no_file("a\0b"))


def test_printable__is_what_it_was_where_it_can_be() -> None:
    assert printable("Größe (1).nii.gz") == "Größe (1).nii.gz"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"

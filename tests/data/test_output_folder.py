from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.folders import check_output_folder


def test_check_output_folder__one_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())


def test_check_output_folder__a_file_or_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for wrong in ("file", "file/below"):
        with pytest.raises(UserError, match="file is a file; -o takes a folder"):
            check_output_folder(tmp_path / wrong)
    asked = []
    monkeypatch.setattr("os.access", lambda folder, mode: asked.append(folder))
    with pytest.raises(UserError, match="cannot be written to; choose another one with -o"):
        check_output_folder(tmp_path / "new" / "deep")
    assert asked == [tmp_path]

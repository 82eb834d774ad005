from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.deployment.writing import replace_file


def test_replace_file__is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "file.csv"
    replace_file(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match="no space"):
            replace_file(file, b"new")
    assert file.read_bytes() == b"old" and list(file.parent.iterdir()) == [file]
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"

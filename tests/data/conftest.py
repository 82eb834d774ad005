from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest


class Folders(NamedTuple):
    raw: Path
    preprocessed: Path
    results: Path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """nnU-Net's three folders, empty, in the environment; one process for everything."""
    made = Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    for name, folder in zip(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), made, strict=True):
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    return made

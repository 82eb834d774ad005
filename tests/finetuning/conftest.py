from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.finetuning.flare import copy_folders, set_folders, write_flare


@pytest.fixture(scope="session")
def flare_prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("flare")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        write_flare(root)
    yield root


@pytest.fixture
def flare(flare_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders of `tests.finetuning.flare`, a copy for one test, in the environment."""
    return copy_folders(flare_prepared, tmp_path, monkeypatch)

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnssl.data.loader import Cases
from nnssl.data.unused import write_withdrawn
from nnssl.data.volumes import VolumeFolder
from nnssl.errors import UserError
from nnssl.pretraining.setup import check_same_run


def _folder(home: Path) -> VolumeFolder:
    return VolumeFolder(home.name, home / "data", home / "data_body", (1.0, 1.0, 1.0), ())


def _setup(folder: VolumeFolder, train: list[str], val: list[str]) -> Any:
    streams = {"train": Cases.of([folder], [train]), "val": Cases.of([folder], [val])}
    return SimpleNamespace(plans={}, resume=Path("fold_all/checkpoint_latest.pth"), **streams)


@pytest.mark.parametrize("withdrawn", [True, False])
def test_check_same_run__other_volumes(tmp_path: Path, withdrawn: bool) -> None:
    home = tmp_path / "Dataset500_X"
    setup = _setup(_folder(home), ["a", "c"], ["d"])
    checkpoint = {"plans": {}, "train_cases": [f"Dataset500_X/{c}" for c in "abc"], "val_cases": ["Dataset500_X/d"]}
    if withdrawn:
        home.mkdir()
        write_withdrawn(home, {"b", "x"})
    with pytest.raises(UserError) as caught:
        check_same_run(setup, checkpoint)
    said = str(caught.value)
    assert "--overwrite" in said and str(setup.resume) in said
    assert ("Dataset500_X/b are gone" in said and "-pretrained" in said) == withdrawn and "Dataset500_X/x" not in said

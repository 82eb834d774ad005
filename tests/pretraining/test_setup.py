from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnssl.checkpoints.files import FINAL, LATEST
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.data.loader import Cases
from nnssl.data.unused import write_withdrawn
from nnssl.data.volumes import VolumeFolder
from nnssl.pretraining.setup import CONFIG, check_output, check_same_run

DESCRIBED = {"method": "mae", "configuration": "3d_fullres", "plans": "nnUNetPlans", "fold": "all", "options": {}}


@pytest.mark.parametrize("file", [CONFIG, LATEST, FINAL, None])
def test_check_output__a_run_may_be_replaced(tmp_path: Path, file: str | None) -> None:
    """A run that was killed before its first checkpoint has its config.json only."""
    folder = tmp_path / "fold_all"
    assert check_output(folder, resume=False, overwrite=True) is None
    folder.mkdir()
    if file == CONFIG:
        write_json(folder / CONFIG, DESCRIBED)
    elif file is not None:
        (folder / file).write_text("")
    assert check_output(folder, resume=False, overwrite=True) is None


def test_check_output__what_is_no_run_is_not_replaced(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "fold_all", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=CONFIG):
        check_output(folder, resume=False, overwrite=True)
    write_json(folder / CONFIG, {"model": "GPT"})
    with pytest.raises(UserError, match=r"method: is missing"):
        check_output(folder, resume=False, overwrite=True)
    folder.rename(elsewhere)
    write_json(elsewhere / CONFIG, DESCRIBED)
    folder.symlink_to(elsewhere)  # the run may be whole: it lies elsewhere
    with pytest.raises(UserError, match="is a link"):
        check_output(folder, resume=False, overwrite=True)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_output(folder, resume=False, overwrite=True)
    assert (elsewhere / "thesis.txt").is_file()


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

"""nnU-Net's own search runs here, with its hundred trainers left out, which take seconds to import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from nnunetv2.utilities import find_objects

import nnssl
from nnssl.installation.environment import INSTALL, Check
from nnssl.installation.trainers import check_trainers, trainer_names

TRAINER = """from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {name}(nnUNetTrainer):
    pass
"""


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our folder with two trainers, as the start-up line leaves things."""
    base = ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    base.nnUNetTrainer = type("nnUNetTrainer", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setattr(find_objects.nnunetv2, "__path__", [str(tmp_path / "nnunetv2")])
    folder = tmp_path / "nnssl_trainers"
    _write(folder, nnUNetTrainer_A="nnUNetTrainer_A", nnUNetTrainer_B="nnUNetTrainer_B", __init__=None)
    (tmp_path / "nnssl").mkdir()
    monkeypatch.setattr(nnssl, "__file__", str(tmp_path / "nnssl" / "__init__.py"))
    monkeypatch.delitem(sys.modules, "nnssl_trainers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    return folder


def _write(folder: Path, **classes: str | None) -> Path:
    """Files of a folder with the name of the trainer in each."""
    folder.mkdir(exist_ok=True)
    for stem, name in classes.items():
        (folder / f"{stem}.py").write_text("" if name is None else TRAINER.format(name=name))
    return folder


def _set(monkeypatch: pytest.MonkeyPatch, *entries: Path) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, entries)))


def _only(status: str) -> Check:
    """The one check with that status."""
    (check,) = [check for check in check_trainers() if check.status == status]
    return check


def test_check_trainers__in_order(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_trainers()) == [
        Check("nnUNet_extTrainer", "ok", str(ours)),
        Check("trainers", "ok", "nnU-Net finds nnUNetTrainer_A, nnUNetTrainer_B"),
    ]
    _set(monkeypatch, _write(tmp_path / "mine", mine="nnUNetTrainer_Mine"), ours)
    assert [check.status for check in check_trainers()] == ["ok", "ok"]


def test_check_trainers__start_up_file_not_read(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_extTrainer")
    variable, search = check_trainers()
    assert variable.status == search.status == "fail"
    assert variable.fix == search.fix == f"export nnUNet_extTrainer={ours}"
    assert "nnssl_trainers.pth" in variable.message and "nnUNetTrainer_A, nnUNetTrainer_B" in search.message
    mine = _write(tmp_path / "my own", mine="nnUNetTrainer_Mine")
    _set(monkeypatch, mine)
    assert {check.fix for check in check_trainers()} == {f"export nnUNet_extTrainer='{mine}:{ours}'"}


def test_check_trainers__missing_folder(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, tmp_path / "gone", ours)
    check = _only("warn")
    assert str(tmp_path / "gone") in check.message and check.fix == f"export nnUNet_extTrainer={ours}"


def test_check_trainers__hidden_by_an_earlier_folder(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = _write(tmp_path / "earlier", other="nnUNetTrainer_B")
    _set(monkeypatch, earlier, ours)
    check = _only("warn")
    assert f"takes nnUNetTrainer_B from {earlier}" in check.message and check.fix == f"export nnUNet_extTrainer={ours}"
    _set(monkeypatch, ours, earlier)
    assert {check.status for check in check_trainers()} == {"ok"}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("from .sibling import X", "ImportError: attempted relative import"),
        ("class broken(:", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys\nsys.exit(2)", "SystemExit: 2"),
    ],
)
def test_check_trainers__broken_module_of_the_user(
    code: str, why: str, ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = _write(tmp_path / "mine", mine="nnUNetTrainer_Mine")
    (mine / "broken.py").write_text(code)
    _set(monkeypatch, mine, ours)
    check = _only("fail")
    assert check.name == "trainers" and f"stops in {mine / 'broken.py'}: {why}" in check.message
    assert check.fix == f"export nnUNet_extTrainer={ours}   (or repair that file)"


def test_check_trainers__broken_module_of_ours(ours: Path) -> None:
    (ours / "aaa.py").write_text("import not_there_at_all")
    check = _only("fail")
    assert f"our {ours / 'aaa.py'} cannot be imported" in check.message and check.fix == INSTALL


def test_check_trainers__not_a_trainer(ours: Path) -> None:
    (ours / "nnUNetTrainer_A.py").write_text("class nnUNetTrainer_A:\n    pass\n")
    check = _only("fail")
    assert "ends with AssertionError" in check.message and check.fix == INSTALL


def test_check_trainers__silently_not_searched(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnUNetTrainer_B", ModuleType("nnUNetTrainer_B"))
    check = _only("fail")
    assert check.message == "nnU-Net does not find nnUNetTrainer_B"


def test_check_trainers__nnunet_too_old_or_missing(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, find_objects.__name__, None)
    check = _only("fail")
    assert "cannot be imported" in check.message and check.fix == 'pip install "nnunetv2>=2.8"'


def test_check_trainers__folder_lost_or_empty(ours: Path) -> None:
    for stem in ("nnUNetTrainer_A", "nnUNetTrainer_B"):
        (ours / f"{stem}.py").unlink()
    assert list(check_trainers()) == [
        Check("trainers", "fail", "the folder nnssl_trainers is missing or empty", INSTALL)
    ]


def test_check_trainers__two_installations(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnssl, "__file__", str(tmp_path / "elsewhere" / "nnssl" / "__init__.py"))
    check = _only("warn")
    assert str(ours) in check.message and str(tmp_path / "elsewhere") in check.message and check.fix


def test_trainer_names__classes_of_a_flat_folder(tmp_path: Path) -> None:
    _write(tmp_path, b="nnUNetTrainer_B", a="nnUNetTrainer_A", helper="Helper")
    (tmp_path / "imports.py").write_text("from x import nnUNetTrainer_C\n")
    (tmp_path / "broken.py").write_text("class nnUNetTrainer_D(:\n")
    _write(tmp_path / "deeper", c="nnUNetTrainer_E")
    assert trainer_names(tmp_path) == ["nnUNetTrainer_A", "nnUNetTrainer_B"]

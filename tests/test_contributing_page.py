"""The method of docs/contributing.md, as it stands there: registered, pretrained and transferred."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import nnssl
import nnssl.methods
from nnssl.cli import pretrain, transfer
from nnssl.features.model import load_pretrained
from nnssl.methods import registry
from nnssl.pretraining.metrics import read_rows
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset

__all__ = ["folders"]  # the fixture

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text()
COMMANDS = {"nnssl_pretrain": pretrain.main, "nnssl_transfer": transfer.main}


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_page__the_example_is_a_method(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    (line,) = (block for block in blocks("text") if "method:" in block)
    (entry,) = ast.literal_eval(f"{{{line}}}").items()
    folder = tmp_path / "methods" / entry[0]
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "method.py").write_text(code)
    monkeypatch.setattr(nnssl.methods, "__path__", [*nnssl.methods.__path__, str(folder.parent)])
    monkeypatch.setitem(registry._METHODS, *entry)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_ct_dataset(folders.raw, 500, "Thorax", 2, shape=(20, 32, 32))
    nnssl.plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    write_ct_dataset(folders.raw, 17, "Organs", 2, shape=(20, 32, 32), labelled=True)
    (commands,) = blocks("bash")
    try:
        for command, *arguments in map(shlex.split, commands.splitlines()):
            COMMANDS[command](arguments)
        run = folders.results / "Dataset500_Thorax" / f"nnssl_{entry[0]}__nnsslPlans_tiny__3d_fullres" / "fold_all"
        model = load_pretrained(run)
    finally:
        for name in [name for name in sys.modules if name.startswith(f"nnssl.methods.{entry[0]}")]:
            del sys.modules[name]
    (row,) = read_rows(run / "metrics.jsonl")
    assert 0 <= row["accuracy"] <= 1 and row["loss"] > 0 and (run / "views.png").is_file()
    assert model.method == entry[0] and model.levels == "encoder"
    assert "nnUNetv2_train 17 3d_fullres all -tr nnUNetTrainer_SSL" in capsys.readouterr().out


def test_page__names_the_rooms_in_their_order() -> None:
    picture = next(block for block in blocks("text") if block.lstrip().startswith("cli"))
    rooms = [line.split()[0] for line in picture.splitlines()]
    assert {*rooms, "installation"} == {folder.parent.name for folder in (ROOT / "nnssl").glob("*/__init__.py")}
    for room in rooms:
        above = rooms[: rooms.index(room)]
        for module in (ROOT / "nnssl" / room).rglob("*.py"):
            taken = re.findall(r"^ *(?:from|import) nnssl\.(\w+)", module.read_text(), flags=re.MULTILINE)
            assert not set(taken) & set(above), module


def test_page__names_the_lanes_of_the_makefile() -> None:
    lanes = set(re.findall(r"^\| `make (\w+)`", PAGE, flags=re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert lanes <= targets and {"test", "quick", "slow", "golden", "durations", "torture", "environments"} <= lanes

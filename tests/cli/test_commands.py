from __future__ import annotations

import re
from pathlib import Path

import pytest

import nnssl
from nnssl.cli.commands import main
from nnssl.cli.table import COMMANDS, OURS

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_table__has_every_command() -> None:
    installed = dict(re.findall(r'^(nnssl_\w+) = "nnssl\.cli\.(\w+):main"$', PYPROJECT, re.MULTILINE))
    assert {command.name: command.module for command in OURS.values()} == installed


def test_main__lists_all_in_the_order_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split(maxsplit=1) for line in lines if line.startswith("  nn") and "  " in line.strip()]
    assert [name for name, _ in listed][: len(COMMANDS)] == [command.name for command in COMMANDS]
    assert all(len(line) <= 120 for line in lines[:-1]) and "docs" in lines[-1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretrain", "-d", "500"], "type nnssl_pretrain -d 500\n"),
        (["visualise"], "type nnssl_visualize\n"),
        (["nnssl_embed"], "type nnssl_embed\n"),
        (["brew"], "there is no command brew"),
        (["-pretrain"], "there is no option -pretrain"),
    ],
)
def test_main__says_which_command_was_meant(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_main__version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert not stopped.value.code and capsys.readouterr().out == f"{nnssl.__version__}\n"

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Many tiny operations: a second thread costs more than it brings, and much more where tests share the cores.
torch.set_num_threads(1)

_HERE = Path(__file__).parent
_LONG = _HERE / "long_tests.json"  # seconds of the tests that `make quick` leaves out; `make durations` writes it
_LONG_S = 1.0  # all parameters of a test together, with what is set up for it
_seconds: defaultdict[str, float] = defaultdict(float)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lanes of the Makefile."""
    parser.addoption("--quick", action="store_true", help="leave out the tests of tests/long_tests.json")
    parser.addoption("--durations-to-file", action="store_true", help="write tests/long_tests.json anew")


@pytest.fixture(autouse=True)
def _no_style_of_another_test() -> Iterator[None]:
    """nnU-Net's trainer lets seaborn change matplotlib's defaults for the whole process."""
    yield
    if (matplotlib := sys.modules.get("matplotlib")) is not None:
        matplotlib.rcdefaults()


@pytest.fixture(autouse=True)
def _no_folders_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must never see the nnU-Net folders of whoever runs it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "nnssl_trusted_modules"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The walks through whole commands come first: they are long, and several processes shall end together."""
    items.sort(key=lambda item: item.path.parent != _HERE)
    if config.getoption("--quick"):
        long = json.loads(_LONG.read_text())
        left_out = [item for item in items if _function(item.nodeid) in long]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _function(item.nodeid) not in long]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[_function(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--durations-to-file") and not hasattr(session.config, "workerinput"):
        long = {name: round(seconds, 1) for name, seconds in sorted(_seconds.items()) if seconds > _LONG_S}
        _LONG.write_text(json.dumps(long, indent=1) + "\n")


def _function(nodeid: str) -> str:
    """A test without its parameters."""
    return nodeid.split("[")[0]

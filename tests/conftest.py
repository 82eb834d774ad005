from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.files import replacing
from tests import preloaded

# Many tiny operations: a second thread costs more than it brings, and much more where tests share the cores.
torch.set_num_threads(1)
preloaded.prepare()

_HERE = Path(__file__).parent
_SECONDS = _HERE / "seconds.json"  # of each file, the tests that take longer than _LISTED_S; `make durations` writes it
_LISTED_S = 0.1
_BUDGET_S = 0.5  # of a file's listed tests in `make quick`; all that are not listed run as well
_WHOLE = 1000  # tests that are surely the whole suite
_measured: defaultdict[str, float] = defaultdict(float)
_shared: dict[str, float] = {}  # seconds of the fixtures that several tests use


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lanes of the Makefile."""
    parser.addoption("--quick", action="store_true", help="of every file the cheapest tests, see tests/seconds.json")
    parser.addoption("--durations-to-file", action="store_true", help="renew tests/seconds.json for the files that run")


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


@pytest.fixture(autouse=True)
def _processes_start_fast(request: pytest.FixtureRequest) -> None:
    """Spawned processes have the libraries loaded, except in tests about processes themselves."""
    preloaded.spawned_from_server(request.node.get_closest_marker("really_spawned") is None)


@pytest.fixture(autouse=True)
def _pictures_of_runs_are_not_rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering is half of a small run's time: what does not look at a picture draws it and writes an empty file."""
    if request.node.get_closest_marker("rendered") is not None:
        return
    if (pictures := sys.modules.get("nnssl.pretraining.pictures")) is not None:
        monkeypatch.setattr(pictures, "save_figure", _write_nothing)
    for logger in preloaded.loggers_of_nnunet():
        monkeypatch.setattr(logger, "plot_progress_png", preloaded.write_empty_picture)


def _write_nothing(_: Any, file: Path, **__: Any) -> None:
    with replacing(file) as temporary:
        temporary.touch()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The walks through whole commands come first: they are long, and several processes should end together."""
    items.sort(key=lambda item: item.path.parent != _HERE)
    if config.getoption("--quick"):
        chosen = _cheapest(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]
    elif len(items) > _WHOLE:
        preloaded.start()  # so that no test pays for it


def _cheapest(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of every file the cheapest tests that `_BUDGET_S` pays; one marked `quick` or not listed costs nothing."""
    listed = json.loads(_SECONDS.read_text())
    seconds = {item: 0.0 if item.get_closest_marker("quick") else _of(listed, item.nodeid) for item in items}
    spent: defaultdict[Path, float] = defaultdict(float)
    chosen = set()
    for item in sorted(items, key=seconds.__getitem__):
        spent[item.path] += seconds[item]
        if spent[item.path] <= _BUDGET_S:
            chosen.add(item)
    return chosen


def _of(listed: dict[str, dict[str, float]], nodeid: str) -> float:
    file, _, test = nodeid.partition("::")
    return listed.get(file, {}).get(test, 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Time what is set up once for several tests: whichever of them runs first pays for it."""
    start = time.perf_counter()
    made = yield
    if fixturedef.scope != "function":
        _shared[fixturedef.argname] = time.perf_counter() - start
    return made


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any]) -> None:
    _shared.pop(fixturedef.argname, None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test after the first one counts the shared fixtures too: without the first it would pay for them."""
    names = getattr(item, "fixturenames", [])
    item.user_properties.append(("shared_s", sum(_shared.get(name, 0.0) for name in names)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _measured[report.nodeid] += report.duration
    if report.when == "setup":
        _measured[report.nodeid] += float(str(dict(report.user_properties).get("shared_s", 0.0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--durations-to-file") and not hasattr(session.config, "workerinput"):
        listed = json.loads(_SECONDS.read_text())
        found: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for nodeid, seconds in _measured.items():
            file, _, test = nodeid.partition("::")
            found[file] |= {test: round(seconds, 2)} if seconds > _LISTED_S else {}
        kept = {
            file: tests
            for file, tests in (listed | found).items()
            if tests and Path(session.config.rootpath / file).is_file()
        }
        _SECONDS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")

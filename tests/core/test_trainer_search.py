from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import nnssl_trainers
from nnssl.core.trainer_search import find_trainer


class _Lazy(ModuleType):
    """Loads another module when it is asked for what it has not."""

    def __init__(self, name: str, loaded: list[str]) -> None:
        super().__init__(name)
        self._loaded = loaded

    def __getattr__(self, attribute: str) -> object:
        if self._loaded:
            name = self._loaded.pop()
            sys.modules[name] = _Lazy(name, self._loaded)
        raise AttributeError(attribute)


@pytest.fixture(autouse=True)
def _our_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent))


@pytest.fixture
def _lazy_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lazy_a", "lazy_b", "lazy_c"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # taken out again, whatever the test puts there
        del sys.modules[name]
    monkeypatch.setitem(sys.modules, "lazy_a", _Lazy("lazy_a", ["lazy_c", "lazy_b"]))


@pytest.mark.usefixtures("_lazy_modules")
def test_find_trainer__modules_that_load_others_when_looked_at() -> None:
    assert find_trainer("nnUNetTrainer_SSLProbe").__name__ == "nnUNetTrainer_SSLProbe"
    assert {"lazy_b", "lazy_c"} <= sys.modules.keys()


@pytest.mark.usefixtures("_lazy_modules")
def test_search_of_nnunet__stops_at_such_modules() -> None:  # else `find_trainer` is not needed any more
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with pytest.raises(RuntimeError, match="changed size"):
        recursive_find_trainer_class_by_name("nnUNetTrainer_SSLProbe")


def test_find_trainer__says_that_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="Could not find"):
        find_trainer("nnUNetTrainer_Nobody")

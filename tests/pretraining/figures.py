from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def kept_figures(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """The figures that a module saves from here on."""
    kept: list[Any] = []
    save = module.save_figure

    def keep(figure: Any, file: Path, **options: Any) -> None:
        kept.append(figure)
        save(figure, file, **options)

    monkeypatch.setattr(module, "save_figure", keep)
    return kept

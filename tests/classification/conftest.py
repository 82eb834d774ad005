from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from nnssl.classification import heads, scores
from tests.classification.data import write_bright_and_dark, write_run


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with labels and a pretraining, which the tests of this folder share."""
    root = tmp_path_factory.mktemp("classification")
    write_bright_and_dark(root / "raw")
    write_run(root / "results")
    return root


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pretraining, in the environment of the commands; figures are not drawn, penalties and samples are few."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(world / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(heads, "_PENALTIES", (1e-2, 1.0))
    monkeypatch.setattr(scores, "_SAMPLES", 200)

    def touch(figure: Figure, file: Path, **_: Any) -> None:
        file.touch()

    monkeypatch.setattr(Figure, "savefig", touch)
    return next((world / "results/Dataset500_Source").iterdir())

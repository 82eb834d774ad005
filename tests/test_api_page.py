"""docs/api.md names every function once, and its script runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nnssl
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset

__all__ = ["folders"]  # the fixture

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()


def test_page__has_every_public_name_once() -> None:
    named = re.findall(r"^::: (\S+)$", PAGE, flags=re.MULTILINE)
    public = {f"nnssl.{name}" for name in nnssl.__all__ if name != "__version__"}
    assert sorted(named) == sorted({*public, "nnssl.features.model.PretrainedModel"})


def test_page__the_script_runs(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.chdir(folders.raw.parent)
    (folders.raw.parent / "nnUNet_raw").symlink_to(folders.raw)
    write_ct_dataset(folders.raw, 500, "Thorax", 2, shape=(20, 32, 32))
    nnssl.plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(script, names)
    voxels, scan = names["voxels"], names["scan"]
    channels = sum(names["model"].channels)  # type: ignore[attr-defined]
    assert voxels.shape[:2] == (1, channels) and voxels.ndim == 5 and scan.shape == (1, channels)  # type: ignore

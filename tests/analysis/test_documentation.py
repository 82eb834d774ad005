from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.analysis.files import write_vectors
from nnssl.cli.embed import parser
from tests.phantoms import ct_volume, write_volume
from tests.pretrainings import tiny_plans, write_pretraining

PAGE = (Path(__file__).parents[2] / "docs/embeddings.md").read_text()


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_load_pretrained__the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_pretraining(tmp_path, tiny_plans(patch_size=[16, 32, 32])).parent
    volume, _ = ct_volume((20, 36, 36), np.random.default_rng(0))
    write_volume(tmp_path / "imagesTs/case_3_0000.nii.gz", volume, (3.0, 1.5, 1.5))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(_blocks()[1].replace('"RUN"', repr(str(run))), names)
    pyramid, voxels, vector, whole = (names[name] for name in ("pyramid", "voxels", "vector", "whole"))
    assert isinstance(pyramid, list) and pyramid[-1].shape == (1, 64, 2, 4, 4)
    assert isinstance(voxels, torch.Tensor) and voxels.shape == (1, 120, 16, 32, 32)
    assert isinstance(vector, torch.Tensor) and vector.shape == (1, 120)
    assert isinstance(whole, np.ndarray) and whole.shape == (64, 3, 5, 5)


def test_vectors__the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "OUT").mkdir()
    write_vectors(tmp_path / "OUT", {"a": np.arange(5, dtype=np.float32)}, [0, 2, 5], as_csv=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(_blocks()[0], names)
    np.testing.assert_array_equal(names["coarsest"], [[2, 3, 4]])  # type: ignore[arg-type]


def test_parser__knows_the_documented_commands_and_every_option_is_documented() -> None:
    commands = re.findall(r"^nnssl_embed (.*?)(?:  +#.*)?$", PAGE, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        parser().parse_args(command.split())
    options = {option for action in parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert all(f"`{option}" in PAGE for option in options)

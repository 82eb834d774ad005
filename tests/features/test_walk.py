"""How often a figure goes from file to file: few moves, and none for each tile or plane."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import nnssl
from tests.phantoms import write_volume
from tests.pretrainings import tiny_plans, write_pretraining

PACKAGE = str(Path(nnssl.__file__).parent)
ROOMS = (f"{PACKAGE}/analysis", f"{PACKAGE}/features")


class Moves:
    """Counts the calls from one file of the package to another."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        to, caller = frame.f_code.co_filename, frame.f_back
        if event != "call" or not to.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != to:
            self.found[caller.f_code.co_filename, to] += 1


def test_walk__of_a_similarity_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl.analysis.planes.save_figure", lambda *_, **__: None)  # matplotlib takes most of the time
    values = np.random.default_rng(0).integers(0, 100, (20, 24, 24)).astype(np.int16)
    write_volume(tmp_path / "case_0000.nii.gz", values, (3.0, 1.5, 1.5))
    run, moves = write_pretraining(tmp_path, tiny_plans(patch_size=[8, 16, 16])), Moves()
    nnssl.visualize_similarity(run, tmp_path / "case", tmp_path / "first.png", device="cpu")  # imports
    sys.setprofile(moves)
    try:
        nnssl.visualize_similarity(run, tmp_path / "case", tmp_path / "a.png", device="cpu")
    finally:
        sys.setprofile(None)
    within = {pair: n for pair, n in moves.found.items() if all(file.startswith(ROOMS) for file in pair)}
    assert 20 < sum(within.values()) <= 36
    assert max(within.values()) < 10, "no move is made for each of the tiles or slices"

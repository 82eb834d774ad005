"""Commands that the system ends without a word, as `kill -9` does, and that are typed again."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnssl.analysis import embed
from nnssl.analysis.files import read_vectors
from nnssl.checkpoints.files import LATEST, load_checkpoint
from nnssl.classification import finetune
from nnssl.classification.classify import classify
from nnssl.pretraining.loop import Pretraining
from tests.classification.data import write_run
from tests.runs import same_content

pytestmark = pytest.mark.slow


def _killed(call: Callable[..., Any], *given: Any) -> None:
    """Call it in a new process, which must be killed; a forked one has no autograd where this one has used threads."""
    child = multiprocessing.get_context("spawn").Process(target=call, args=given)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def _dying(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, until it is called for this time."""
    left = [calls]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def _frozen(run: Path) -> Path:
    return classify(600, run, "look", folds=2, device="cpu").folder


def _frozen_until(run: Path, calls: int) -> None:
    embed._SAVE_EVERY = 2
    embed.body_vector = _dying(embed.body_vector, calls)
    _frozen(run)


def _finetuned(run: Path, output: Path, **more: Any) -> Path:
    options = ["num_epochs=2", "batch_size=2", "save_every_epochs=1", "patch_size=8,16,16"]
    return classify(600, run, "look", finetune=True, folds=2, output=output, options=options, device="cpu",
                    num_processes=1, **more).folder  # fmt: skip


def _no_peak(setup: Any, method: Any = None) -> float:
    return 0.1


def _finetuned_until(run: Path, output: Path, steps: int) -> None:
    finetune.peak_gib = _no_peak
    Pretraining._train_step = _dying(Pretraining._train_step, steps)  # type: ignore[method-assign]
    _finetuned(run, output)


def test_classify__frozen_killed_between_cases(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    source, made = write_run(tmp_path), []
    for name in ("whole", "killed"):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / name))
        if name == "killed":
            _killed(_frozen_until, source, 6)
            (vectors,) = (tmp_path / "killed/Dataset600_Scans").glob("vectors_*")
            assert len(read_vectors(vectors / "vectors.npz")) == 4
        made.append(_frozen(source))
    whole, killed = ((folder / "predictions.csv").read_text() for folder in made)
    assert whole == killed and len(whole.splitlines()) == 11


def test_classify__finetuning_killed_within_an_epoch_of_the_second_fold(
    world: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "peak_gib", _no_peak)
    whole = _finetuned(run, world / "whole_folds")
    steps = 2 * load_checkpoint(whole / "fold_0/checkpoint_final.pth")["config"]["steps_per_epoch"]
    _killed(_finetuned_until, run, world / "killed_folds", steps + steps // 2 + 1)
    assert (world / "killed_folds/fold_1" / LATEST).is_file()
    killed = _finetuned(run, world / "killed_folds", continue_run=True)
    for fold in ("fold_0", "fold_1"):
        first, second = (load_checkpoint(folder / fold / "model.pth") for folder in (whole, killed))
        assert same_content(first["method_state"], second["method_state"])
    assert (whole / "predictions.csv").read_text() == (killed / "predictions.csv").read_text()

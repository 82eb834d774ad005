from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.methods.base import StepOutput
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining.health import (
    ROWS_A_STEP,
    STEPS,
    Health,
    RankHistory,
    alignment,
    collapse_warning,
    effective_rank,
    embedding_std,
    fall_warning,
    uniformity,
)
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from tests.runs import CPU, make_setup, resumed

OF_MAPS = {"unet_mae", "volumefusion"}  # whose embeddings are means of whole maps
WITHOUT_CAUSE = WITHOUT_PAIRS = {"mae", *OF_MAPS}


def _rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _output(embeddings: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> StepOutput:
    return StepOutput(torch.zeros(()), {}, embeddings, pairs)


def test_embedding_std__is_that_of_an_even_spread_and_zero_for_one_point() -> None:
    assert embedding_std(_rows(4000, 64)) == pytest.approx(1 / 8, rel=0.02)
    assert embedding_std(_rows(1, 8).repeat(5, 1)) < 1e-6 and embedding_std(_rows(1, 8)) == 0


@pytest.mark.parametrize("count", [30, 4])  # more rows than dimensions, and fewer
def test_effective_rank__is_the_exponential_of_the_entropy_of_the_singular_values(count: int) -> None:
    rows = _rows(count, 9).double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    shares = [float(v / values.sum()) for v in values if v > 1e-9]
    expected = math.exp(-sum(s * math.log(s) for s in shares))
    assert effective_rank(rows) == pytest.approx(expected, rel=1e-5)


def test_effective_rank__of_even_spreads_of_lines_and_of_points() -> None:
    axes = torch.eye(6)
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(6)
    assert effective_rank(3 * torch.cat([axes[:2], -axes[:2]])) == pytest.approx(2)
    assert effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])) == pytest.approx(1)
    assert effective_rank(_rows(1, 8).repeat(5, 1)) == 1 and effective_rank(_rows(1, 8)) == 1


def test_alignment_and_uniformity__by_hand() -> None:
    axes = torch.eye(3)
    assert alignment(axes, 5 * axes) == 0
    assert alignment(axes, -axes) == pytest.approx(4) and alignment(axes, axes.roll(1, 0)) == pytest.approx(2)
    assert uniformity(axes) == pytest.approx(-4)  # squared distances of 2, t = 2
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert uniformity(two) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


def test_health__takes_a_bounded_number_of_rows_of_the_last_steps_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    health = Health(STEPS + 5, CPU)
    for step in range(STEPS + 5):  # what comes before the last steps would be a rank of 1
        many = torch.ones(700, 6) if step < 5 else _rows(700, 6, seed=step)
        health.add(step, _output(many, (many, many)))
    row = health.finish_epoch()
    assert row["health_rows"] == STEPS * ROWS_A_STEP == 1024
    assert row["effective_rank"] == pytest.approx(6, rel=0.01) and row["alignment"] == 0 and row["uniformity"] < -2
    assert torch.equal(torch.get_rng_state(), state)
    health.add(STEPS + 5, _output(_rows(700, 6)))
    assert health.finish_epoch() == {}


def test_health__few_rows_and_pairs_that_are_none() -> None:
    first, second = _rows(5, 4), _rows(5, 4, seed=1)
    second[1:3] = torch.nan
    health = Health(1, CPU)
    health.add(0, _output(first, (first, second)))
    row = health.finish_epoch()
    keep = [0, 3, 4]
    assert row["health_rows"] == 5 and row["alignment"] == pytest.approx(alignment(first[keep], second[keep]))
    health.add(1, _output(first, (first, torch.full_like(first, torch.nan))))
    assert "alignment" not in health.finish_epoch()
    health.add(2, _output(first))
    assert health.finish_epoch().keys() == {"effective_rank", "health_rows"}


def test_health__an_interrupted_epoch_goes_on() -> None:
    whole, parts = Health(4, CPU), Health(4, CPU)
    for step in range(4):
        output = _output(_rows(9, 5, seed=step), (_rows(9, 5, seed=step), _rows(9, 5, seed=step + 9)))
        whole.add(step, output)
        if step == 2:
            parts = Health(4, CPU, parts.state())
        parts.add(step, output)
    assert whole.finish_epoch() == parts.finish_epoch()


def _row(rows: Tensor) -> dict[str, Any]:
    """What an epoch's row has of such embeddings."""
    health = Health(1, CPU)
    health.add(0, _output(rows))
    figures = {"embedding_dim": rows.shape[1], "embedding_std": float(embedding_std(rows))}
    return figures | health.finish_epoch()


def test_collapse_warning__looks_at_the_rank_too() -> None:
    """Vectors in a plane of 64 dimensions, turned so that every dimension has the healthy deviation."""
    turn = torch.linalg.qr(_rows(64, 64)).Q
    plane = _row(torch.cat([_rows(32, 2), torch.zeros(32, 62)], dim=1) @ turn)
    assert plane["embedding_std"] == pytest.approx(1 / 8, rel=0.2) and plane["effective_rank"] < 2.1
    warning = collapse_warning(plane, "few volumes")
    assert warning and "2.0 of at most 31" in warning and warning.endswith("likely few volumes")
    assert collapse_warning(_row(_rows(32, 64)), None) is None
    close = collapse_warning(_row(torch.ones(32, 64) + 0.01 * _rows(32, 64)), None)
    assert close and "0.00" in close and "learning_rate" in close, "of full rank, but nearly one point"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_collapse_warning__few_rows_say_nothing_of_the_rank(count: int) -> None:
    assert collapse_warning(_row(_rows(count, 64)) | {"embedding_std": 0.125}, None) is None
    old = {"embedding_dim": 64, "embedding_std": 0.125}
    assert collapse_warning(old, None) is None and collapse_warning(old | {"embedding_std": 0.001}, None)


def test_rank_history__warns_after_three_low_epochs_in_a_row_not_two() -> None:
    ranks = RankHistory()
    rows = [ranks.add({"effective_rank": rank}) for rank in (20.0, 40.0, 3.9, 3.0, 4.0, 3.9, 3.9, 3.9, 3.8, 5.0)]
    warned = [fall_warning(row, "a high learning_rate") for row in rows]
    assert [warning is not None for warning in warned] == [False] * 7 + [True] * 2 + [False]
    assert warned[7] and "40.0" in warned[7] and warned[7].endswith("likely a high learning_rate")
    without = fall_warning(rows[7], None)
    assert without and "likely" not in without
    assert ranks.add({}) == {}  # an epoch without rows


def test_rank_history__the_count_and_the_best_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    ranks = iter([50.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr("nnssl.pretraining.health.effective_rank", lambda rows: next(ranks))
    setup = make_setup(tmp_path, num_epochs=4, steps_per_epoch=1, save_every_epochs=3)
    stop = setup.folder / "checkpoint_latest.pth"
    first = Pretraining(setup, CPU)
    monkeypatch.setattr(first, "_validate", lambda batches: first.epoch == 3 and pytest.exit("killed"))
    with pytest.raises(pytest.exit.Exception):
        first.run()
    assert torch.load(stop, weights_only=True)["rank_state"] == {"best": 50.0, "low_epochs": 2}
    with caplog.at_level("INFO", logger="nnssl"):
        ranks = iter([4.0])
        resumed(setup, stop.name).run()
    (line,) = [record for record in caplog.records if "epoch 4/4" in record.message]
    assert line.levelname == "WARNING" and "tenth of its best, 50.0" in line.message
    assert f"likely {Vox2vec.collapse_cause}" in line.message
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert ["rank_fallen_from" in row for row in rows] == [False, False, False, True]


@pytest.mark.parametrize("method", method_names())
def test_collapse_cause__names_options_that_the_method_has(method: str) -> None:
    cause, config = get_method(method).collapse_cause, get_method(method).config_class()
    assert (cause is None) == (method in WITHOUT_CAUSE)
    named = re.findall(r"(\w+)=", cause or "")
    assert all(hasattr(config, name) for name in named)


def test_collapse__is_no_fault_of_means_of_maps() -> None:
    assert {name for name in method_names() if not get_method(name).collapses} == OF_MAPS


@pytest.mark.parametrize("method", method_names())
def test_step__pairs_are_rows_of_one_kind_without_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    run = Pretraining(make_setup(tmp_path, method, num_epochs=1), CPU)
    kept: list[StepOutput] = []
    forward = run._forward

    def watched(*arguments: Any) -> StepOutput:
        kept.append(forward(*arguments))
        return kept[-1]

    monkeypatch.setattr(run, "_forward", watched)
    run.run()
    row = read_rows(run.setup.folder / "metrics.jsonl")[-1]
    assert 1 <= row["effective_rank"] <= min(row["health_rows"] - 1, row["embedding_dim"]) + 1e-6
    if method in WITHOUT_PAIRS:
        assert all(output.pairs is None for output in kept) and "alignment" not in row
        return
    for output in kept:
        assert output.pairs is not None
        first, second = output.pairs
        assert first.shape == second.shape and first.ndim == 2 and len(first) > 0
        assert not first.requires_grad and not second.requires_grad and not output.embeddings.requires_grad
        assert not torch.equal(first, second)
    assert 0 <= row["alignment"] <= 4 and -8 <= row["uniformity"] <= 0


def test_step__pimpic_with_pim_alone_has_no_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = make_setup(tmp_path, "pimpic", num_epochs=1)
    setup = replace(setup, config=replace(setup.config, terms="pim"))  # type: ignore[call-arg]
    Pretraining(setup, CPU).run()
    assert "alignment" not in read_rows(setup.folder / "metrics.jsonl")[0]

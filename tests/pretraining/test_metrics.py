from __future__ import annotations

from typing import Any

import pytest

from nnssl.pretraining.metrics import summarise, summary_lines, totals

COMMON = {"embedding_std": 0.1, "device": "cuda", "memory_gib": 2.0}


def _rows() -> list[dict[str, Any]]:
    first = {"epoch": 1, "step": 10, "loss": 2.0, "samples": 20, "seconds": 10.0, "wall_seconds": 20.0,
             "data_wait": 0.5, "device_hours": 0.5, "energy_kwh": 0.25, "effective_rank": 3.0, "probe_share": 0.1,
             "probe_linear_dice": 0.7, "probe_nonlinear_dice": 0.6}  # fmt: skip
    second = {**first, "epoch": 2, "step": 20, "loss": 1.0, "samples": 20, "seconds": 30.0, "wall_seconds": 60.0,
              "data_wait": 0.1, "memory_gib": 1.0, "probe_share": 0.2, "probe_linear_dice": 0.4,
              "probe_nonlinear_dice": 0.8, "val_loss": 1.5, "alignment": 0.3, "uniformity": -2.0}  # fmt: skip
    rows = [{**COMMON, **first}, {**COMMON, **second}]
    rows[-1].update(totals(rows))
    return rows


def test_totals__of_all_rows_and_energy_only_where_all_of_it_is_known() -> None:
    assert totals(_rows()) == {"total_device_hours": 1.0, "total_energy_kwh": 0.5}
    rows = [*_rows(), {"epoch": 3, "device_hours": 0.5, "energy_kwh": None}]
    assert totals(rows) == {"total_device_hours": 1.5, "total_energy_kwh": None}


def test_summarise__times_weigh_the_epochs() -> None:
    summary = summarise(_rows(), 4)
    assert summary["steps"] == 20 and summary["samples"] == 40 and summary["processes"] == 4
    assert summary["samples_per_second"] == 1.0 and summary["data_wait"] == pytest.approx(0.2)
    assert summary["device_hours"] == 1.0 and summary["wall_hours"] == pytest.approx(80 / 3600)
    assert summary["peak_memory_gib"] == 2.0 and summary["energy_kwh"] == 0.5
    assert summary["loss"] == 1.0 and summary["val_loss"] == 1.5 and summary["uniformity"] == -2.0
    assert summary["probe_share"] == pytest.approx(14 / 80)
    assert summary["best_probe"] == {"linear": {"dice": 0.7, "epoch": 1}, "nonlinear": {"dice": 0.8, "epoch": 2}}


def test_summarise__epochs_of_an_earlier_version_count_where_they_are_known() -> None:
    """A run that was begun before costs were written, and continued."""
    old = {"epoch": 0, "step": 5, "loss": 3.0, "embedding_std": 0.1, "memory_gib": 1.0, "seconds": 50.0,
           "data_wait": 0.9, "samples_per_second": 1.0}  # fmt: skip
    rows = [old, *_rows()]
    rows[-1].update(totals(rows))
    summary = summarise(rows, 4)
    assert summary["samples_per_second"] == 1.0 and summary["data_wait"] == pytest.approx(0.2)
    assert summary["probe_share"] == pytest.approx(14 / 80) and summary["energy_kwh"] is None


def test_summary_lines__say_what_is_known() -> None:
    lines = summary_lines(summarise(_rows(), 4))
    assert lines[0] == ("cost: 20 steps, 40 samples in 1 GPU-hours (4 processes), 1.00 samples/s, data-wait 20.0 %, "
                        "2.00 GiB, 0.5 kWh")  # fmt: skip
    assert lines[1] == ("at the end: loss 1.0000, val 1.5000, deviation 0.1, effective rank 3, alignment 0.3, "
                        "uniformity -2")  # fmt: skip
    assert "linear 0.7000 (epoch 1), nonlinear 0.8000 (epoch 2); the probe took 17.5 %" in lines[2]


def test_summary_lines__of_a_cpu_without_validation_pairs_and_probe() -> None:
    row = {**COMMON, "device": "cpu", "epoch": 1, "step": 3, "loss": 2.0, "samples": 6, "seconds": 3.0,
           "wall_seconds": 3.6, "data_wait": 0.0, "device_hours": 0.001, "energy_kwh": None}  # fmt: skip
    row.update(totals([row]))
    summary = summarise([row], 1)
    assert summary["best_probe"] is None and summary["probe_share"] is None and summary["energy_kwh"] is None
    lines = summary_lines(summary)
    assert len(lines) == 2 and "0.001 CPU-hours (1 process)" in lines[0] and "energy not reported" in lines[0]
    assert "val" not in lines[1] and "alignment" not in lines[1]

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnssl.pretraining import cost
from nnssl.pretraining.cost import EnergyMeter, EpochCost
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from tests.runs import CPU, make_setup


class Clock:
    """A clock and an energy counter that are set by hand."""

    device_name = "GPU-aaaa"

    def __init__(self, energy: float | None = 100.0) -> None:
        self.now, self.energy = 0.0, energy

    def perf_counter(self) -> float:
        return self.now

    def joules(self) -> float | None:
        return self.energy


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cost, "time", made)
    return made


def _pass(clock: Clock, seconds: float, joules: float = 0.0) -> None:
    clock.now += seconds
    clock.energy = None if clock.energy is None else clock.energy + joules


def _epoch(costs: EpochCost, clock: Clock) -> None:
    """7 s: 1 s before, 1 s waiting, 3 s training of which 1 s is a probe's, 2 s after it."""
    _pass(clock, 1)
    costs.lap("other")
    _pass(clock, 1)
    costs.lap("waiting")
    _pass(clock, 3, joules=3600)
    costs.samples += 6
    costs.lap("training")
    costs.move("training", "probe", 1)
    _pass(clock, 2)


def test_finish_epoch__every_second_is_counted_once(clock: Clock) -> None:
    costs = EpochCost(clock)  # type: ignore[arg-type]
    for _ in range(2):
        _epoch(costs, clock)
        row = costs.finish_epoch()
        assert row["wall_seconds"] == 7 and row["device_hours"] == pytest.approx(7 / 3600)
        assert row["seconds"] == 3 and row["samples_per_second"] == 2 and row["data_wait"] == pytest.approx(1 / 3)
        assert row["samples"] == 6 and row["energy_kwh"] == pytest.approx(1e-3)


def test_share__of_the_time_so_far(clock: Clock) -> None:
    costs = EpochCost(clock)  # type: ignore[arg-type]
    _epoch(costs, clock)
    costs.lap("other")
    assert costs.share("probe") == pytest.approx(1 / 7)


def test_state__an_interrupted_epoch_goes_on_and_the_pause_is_not_counted(clock: Clock) -> None:
    costs = EpochCost(clock)  # type: ignore[arg-type]
    _epoch(costs, clock)
    state = costs.state()
    _pass(clock, 1000, joules=1e9)
    costs = EpochCost(clock, state)  # type: ignore[arg-type]
    _epoch(costs, clock)
    row = costs.finish_epoch()
    assert row["wall_seconds"] == 14 and row["samples"] == 12 and row["energy_kwh"] == pytest.approx(2e-3)


def test_finish_epoch__several_processes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[dict[str, float] | None] = [{"GPU-aaaa": 3500.0}, {"GPU-bbbb": 3600.0}]  # the first shares our card
    monkeypatch.setattr(cost, "world_size", lambda: 3)
    monkeypatch.setattr(cost, "gather_objects", lambda mine: [mine, *others])
    costs = EpochCost(clock)  # type: ignore[arg-type]
    _epoch(costs, clock)
    row = costs.finish_epoch()
    assert row["energy_kwh"] == pytest.approx(2e-3) and row["device_hours"] == pytest.approx(21 / 3600)
    others[0] = None
    assert costs.finish_epoch()["energy_kwh"] is None


def test_finish_epoch__without_a_counter_no_energy_is_reported(clock: Clock) -> None:
    clock.energy = None
    costs = EpochCost(clock)  # type: ignore[arg-type]
    assert costs.finish_epoch()["energy_kwh"] is None
    clock.energy = 5.0  # a counter that comes back has missed something
    assert costs.finish_epoch()["energy_kwh"] is None
    _pass(clock, 1, joules=3600)
    assert costs.finish_epoch()["energy_kwh"] == pytest.approx(1e-3)


def test_run__the_row_of_an_epoch_holds_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = make_setup(tmp_path)
    run = Pretraining(setup, CPU)
    counter = iter(range(0, 10**9, 3600))
    run.meters.cost = EpochCost(SimpleNamespace(device_name="GPU-a", joules=lambda: float(next(counter))))  # type: ignore[arg-type]
    run.run()
    rows: list[dict[str, Any]] = read_rows(setup.folder / "metrics.jsonl")
    assert [r["samples"] for r in rows] == [6, 6] and all(r["device"] == "cpu" for r in rows)
    assert all(0 < r["seconds"] < r["wall_seconds"] for r in rows)
    assert rows[1]["total_device_hours"] == pytest.approx(rows[0]["device_hours"] + rows[1]["device_hours"])
    assert rows[0]["energy_kwh"] > 0
    assert rows[1]["total_energy_kwh"] == pytest.approx(rows[0]["energy_kwh"] + rows[1]["energy_kwh"])


CARD = torch.device("cuda", 1)


class NVMLError(Exception):
    pass


class FakeNvml:
    """Two cards; the counters of `counts` in mJ."""

    NVMLError = NVMLError

    def __init__(self, counts: dict[str, int], broken: bool = False) -> None:
        self.counts, self.broken = counts, broken

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError("no driver")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        if uuid.decode() not in self.counts:
            raise NVMLError("not found")
        return uuid.decode()

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.counts[handle] < 0:
            raise NVMLError("not supported")
        return self.counts[handle]


@pytest.fixture(autouse=True)
def _cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's card 1 is NVML's card 0, as CUDA_VISIBLE_DEVICES=1,0 makes it."""
    names = {0: "bbbb", 1: "aaaa"}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(uuid=names[d.index]))


def test_joules__are_those_of_the_card_with_the_same_uuid() -> None:
    nvml = FakeNvml({"GPU-aaaa": 5000, "GPU-bbbb": 9000})
    meter = EnergyMeter(CARD, nvml)
    assert meter.device_name == "GPU-aaaa" and meter.joules() == 5.0
    nvml.counts["GPU-aaaa"] = 7500
    assert meter.joules() == 7.5


@pytest.mark.parametrize("nvml", [
    FakeNvml({"GPU-aaaa": -1}), FakeNvml({"GPU-cccc": 5000}), FakeNvml({"GPU-aaaa": 5000}, broken=True)
], ids=["no counter", "unknown card", "no driver"])  # fmt: skip
def test_joules__without_a_counter_there_are_none(nvml: FakeNvml) -> None:
    assert EnergyMeter(CARD, nvml).joules() is None


def test_joules__of_a_cpu_there_are_none() -> None:
    assert EnergyMeter(CPU, FakeNvml({"GPU-aaaa": 5000})).joules() is None


def test_joules__without_the_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert EnergyMeter(CARD).joules() is None

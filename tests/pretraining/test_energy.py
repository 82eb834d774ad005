from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nnssl.pretraining.cost import EnergyMeter
from tests.runs import CPU

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

"""Energy that a card has taken, by NVML's counter."""

from __future__ import annotations

from typing import Any

import torch


class EnergyMeter:
    """The total-energy counter of an NVIDIA card (Volta or newer), of which differences are to be taken.

    It counts the whole card, other processes on it included. Without such a counter (CPU, an older card, a part of a
    card, no `nvidia-ml-py`) nothing is reported: `joules` is None.

    Args:
        device: of this process.
        nvml: the module `pynvml`, or what stands for it; None: that module, if it is installed.
    """

    def __init__(self, device: torch.device, nvml: Any = None) -> None:
        self.device_name = ""
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._open(device, nvml or _pynvml())

    def joules(self) -> float | None:
        """Energy since the driver was loaded."""
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000  # it is in mJ
        except self._nvml.NVMLError:
            return None

    def _open(self, device: torch.device, nvml: Any) -> None:
        if nvml is None:
            return
        # NVML numbers the machine's cards, PyTorch those of CUDA_VISIBLE_DEVICES, possibly in another order
        self.device_name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        try:
            nvml.nvmlInit()
            self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByUUID(self.device_name.encode())
        except nvml.NVMLError:
            self._handle = None


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml

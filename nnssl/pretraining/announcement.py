"""What a run says of itself before its first step: the network, what it reads, where it works, how long that takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

from nnssl.core.distributed import world_size
from nnssl.data.loader import number_of_workers
from nnssl.methods.base import Method
from nnssl.pretraining.metrics import memory_gib
from nnssl.pretraining.setup import Setup

log = logging.getLogger("nnssl")


def announce(setup: Setup, method: Method, device: torch.device, precision: torch.dtype, step: int, time: str) -> None:
    """Say it in aligned lines.

    Args:
        setup: of the run.
        method: built, on the device.
        device: of this process.
        precision: of the forward passes.
        step: finished steps.
        time: how long the run will take, as far as that is known.
    """
    config = setup.config
    steps = f"{config.num_epochs:,} epochs of {config.steps_per_epoch:,} steps"
    rows = [
        ("method", f"{setup.method}, {steps}" + (f", goes on after step {step:,}" if step else "")),
        ("network", _network(method)),
        ("parameters", f"{_count([method]):,} in all, {_count([method.backbone]):,} of them in the backbone"),
        ("input", _input(setup)),
        ("device", _device(device, precision)),
        ("volumes", _volumes(setup)),
        *_probe(setup),
        ("memory", _memory(device)),
        ("time", time),
        ("output", str(setup.folder)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        log.info(f"{name:<{width}}  {text}")


def _network(method: Method) -> str:
    backbone = method.backbone
    kind = type(getattr(backbone, "network", backbone)).__name__
    number = len(backbone.channels)
    channels = ", ".join(map(str, backbone.channels))
    left_out = f", the finest {backbone.finest} left out" if backbone.finest else ""
    return f"{kind}, {method.levels} maps at {number} level{'s' * (number > 1)} of {channels} channels{left_out}"


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _input(setup: Setup) -> str:
    sizes = (setup.config.patch, setup.train.folders[0].spacing)
    patch, mm = (" x ".join(f"{number:g}" for number in numbers) for numbers in sizes)
    share = f", {setup.config.volumes // world_size()} in each of {world_size()} processes"
    return f"patch {patch} voxels of {mm} mm, batch {setup.config.volumes}{share if world_size() > 1 else ''}"


def _device(device: torch.device, precision: torch.dtype) -> str:
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads > 1)} of the CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    workers = number_of_workers()
    loading = f"{workers} loader process{'es' * (workers > 1)}" if workers else "volumes are loaded between the steps"
    return f"{str(precision).removeprefix('torch.')} on {where}, {loading}"


def _volumes(setup: Setup) -> str:
    held = f"{len(setup.val):,} held out" if len(setup.val) else "none held out: there is no validation loss"
    return f"{len(setup.train):,} for the training, {held}"


def _probe(setup: Setup) -> list[tuple[str, str]]:
    if setup.probe is None:
        return []
    return [("probe", f"heads on the features learn from {len(setup.probe.train)} labelled cases of "
                      f"{setup.probe.folder.name}, Dice on {len(setup.probe.held_out)} others")]  # fmt: skip


def _memory(device: torch.device) -> str:
    text = f"{memory_gib(torch.device('cpu')):.2f} GiB of this process so far"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        text += f", {memory_gib(device):.2f} of the card's {total:.1f} GiB"
    return text

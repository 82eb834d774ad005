"""A step of the authors' code and of ours in turn, in one process: CPU time and time on the clock.

    VOCO_CODE=folder python benchmarks/published_steps.py -threads 1 -repeats 1 -feature_size 12

`VOCO_CODE` names a clone of the authors' code, whose `models/voco_head.py` is imported; nothing of it is part of this
package. One volume: 2 crops and 16 bases of 64 x 64 x 64 unless fewer are asked for; student, teacher, loss, backward,
clip, AdamW, momentum. The floor is what the convolutions and matrix products of our step took: forward, backward, and
computed again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.swin import SwinPyramid
from nnssl.pretraining.optimisation import build_optimiser

PRODUCTS = ("aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


class Floor(TorchDispatchMode):
    """CPU seconds of the convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.process_time()
        result = func(*args, **(kwargs or {}))
        if func.name().startswith(PRODUCTS):
            self.seconds += time.process_time() - begin
        return result


def published_step(code: Path, width: int, views: Tensor, labels: Tensor) -> Callable[[], None]:
    """The authors' step, as their `voco_train.py` makes it without autocast."""
    spec = importlib.util.spec_from_file_location("voco_head", code / "models" / "voco_head.py")
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    options = argparse.Namespace(
        in_channels=1, feature_size=width, dropout_path_rate=0.0, use_checkpoint=True, spatial_dims=3
    )
    model = theirs.VoCoHead(options)
    for network in (model.student, model.teacher):  # theirs is of width 48 alone
        network.proj_head = theirs.projection_head(24 * width, 2048, 2048)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, amsgrad=True)
    crops, bases = (MetaTensor(part) for part in views[0].split(list(labels.shape[1:])))

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every step
            loss = sum(model(crops, bases, labels))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def our_step(width: int, views: Tensor, labels: Tensor, recompute: bool) -> Callable[[], None]:
    """Our step on the same views."""
    config = VoCoConfig(batch_size=1, patch_size=(64, 64, 64), crops=labels.shape[1], grid=(1, 1, labels.shape[2]))
    method = VoCo(SwinPyramid(feature_size=width, use_checkpoint=recompute), config)
    optimiser = build_optimiser(config, method.parameters())

    def step() -> None:
        loss = method({"views": views, "labels": labels}).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        method.after_step(0)

    return step


def timed(step: Callable[[], None]) -> tuple[float, float, float]:
    """CPU seconds, seconds on the clock, and the load of the machine at the end."""
    cpu, clock = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu, time.perf_counter() - clock, os.getloadavg()[0]


def main() -> None:
    """Print every step as it ends, then the ratio of the fastest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-repeats", type=int, default=2)
    parser.add_argument("-feature_size", type=int, default=48)
    parser.add_argument("-crops", type=int, default=2)
    parser.add_argument("-bases", type=int, default=16)
    parser.add_argument("-no_recompute", action="store_true", help="ours keeps the transformer's activations")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    inputs = given.crops + given.bases
    views = torch.rand(1, inputs, 1, 64, 64, 64)
    labels = torch.rand(1, given.crops, given.bases).softmax(-1)
    ours = our_step(given.feature_size, views, labels, not given.no_recompute)
    theirs = published_step(Path(os.environ["VOCO_CODE"]), given.feature_size, views, labels)
    print(
        f"VoCo, {inputs} inputs of 64^3, width {given.feature_size}, torch {torch.__version__}, {given.threads} threads"
    )
    fastest: dict[str, tuple[float, float]] = {}
    for _ in range(given.repeats):
        for name, step in (("ours", ours), ("published", theirs)):
            with Floor() if name == "ours" else contextlib.nullcontext() as floor:
                cpu, clock, load = timed(step)
            products = floor.seconds if isinstance(floor, Floor) else float("nan")
            fastest[name] = min(fastest.get(name, (cpu, products)), (cpu, products))
            print(
                f"{name:10} {cpu:8.2f} CPU s {clock:8.2f} s, floor {products:8.2f} CPU s, load {load:.1f}", flush=True
            )
    (our_cpu, floor_cpu), (their_cpu, _) = fastest["ours"], fastest["published"]
    print(f"ours / published {our_cpu / their_cpu:.2f}, ours / floor {our_cpu / floor_cpu:.2f}")


if __name__ == "__main__":
    main()

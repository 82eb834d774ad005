"""A step of VoCo's authors' code and of ours in turn, in one process: CPU time of the user, and time on the clock.

    VOCO_CODE=folder python benchmarks/published_steps.py -threads 2 -repeats 2 -feature_size 12

`VOCO_CODE` names a clone of the authors' code, whose `models/voco_head.py` is imported; nothing of it is part of this
package. One volume: 2 crops and 16 bases of 64 x 64 x 64 unless fewer are asked for; student, teacher, loss, backward,
clip, AdamW, momentum. The floor is what the convolutions, matrix products and softmax of a step of ours take alone, on
tensors of the same shapes, one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from parts import in_turn, step_of, user_seconds
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.swin import SwinPyramid

PRODUCTS = ("aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_softmax")


class Products(TorchDispatchMode):
    """Counts the convolutions, matrix products and softmax that are called, by function, shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith(PRODUCTS):
            self.calls[func, described(args), described(sorted((kwargs or {}).items()))] += 1
        return func(*args, **(kwargs or {}))


class Shape(NamedTuple):
    """What a tensor is made again from."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def described(value: Any) -> Any:
    """Arguments of a call as something that can be counted."""
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), value.stride(), value.dtype)
    return tuple(described(part) for part in value) if isinstance(value, (list, tuple)) else value


def made(value: Any) -> Any:
    """The arguments that a description is of, with random values."""
    if isinstance(value, Shape):
        return torch.empty_strided(value.size, value.strides, dtype=value.dtype).uniform_(-1, 1)
    return [made(part) for part in value] if isinstance(value, tuple) else value


def measure_floor(step: Callable[[], None]) -> Callable[[], tuple[float, float]]:
    """What the products of a step take alone: user and clock seconds, the faster of two calls of each kind."""
    with Products() as products:
        step()

    def floor() -> tuple[float, float]:
        user = clock = 0.0
        for (func, args, kwargs), count in products.calls.items():
            given, named = made(args), {name: made(value) for name, value in kwargs}
            times, few = [], 1
            for _ in range(2):
                begin = user_seconds(), time.perf_counter()
                for _ in range(few):
                    func(*given, **named)
                times.append(((user_seconds() - begin[0]) / few, (time.perf_counter() - begin[1]) / few))
                few = min(count, 5) if times[0][1] < 0.1 else 1  # the clock of CPU time is coarse
            user, clock = user + count * min(t[0] for t in times), clock + count * min(t[1] for t in times)
        return user, clock

    return floor


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
    return step_of(method, lambda: {"views": views, "labels": labels})


def main() -> None:
    """Print every step as it ends, then the ratio of the fastest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-repeats", type=int, default=2)
    parser.add_argument("-feature_size", type=int, default=48)
    parser.add_argument("-crops", type=int, default=2)
    parser.add_argument("-bases", type=int, default=16)
    parser.add_argument("-no_published", action="store_true", help="ours and the floor alone")
    parser.add_argument("-no_recompute", action="store_true", help="ours keeps the transformer's activations")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    inputs = given.crops + given.bases
    views = torch.rand(1, inputs, 1, 64, 64, 64)
    labels = torch.rand(1, given.crops, given.bases).softmax(-1)
    ours = our_step(given.feature_size, views, labels, not given.no_recompute)
    print(
        f"VoCo, {inputs} inputs of 64^3, width {given.feature_size}, torch {torch.__version__}, {given.threads} threads"
    )
    steps = {"ours": ours}
    if not given.no_published:
        code = Path(os.environ["VOCO_CODE"])
        steps["published"] = published_step(code, given.feature_size, views, labels)
    fastest = in_turn(steps, given.repeats, "ours" if given.no_published else "published")["ours"]
    user, clock = measure_floor(ours)()
    print(f"floor            {user:8.2f} s of user CPU, {clock:8.2f} s, load {os.getloadavg()[0]:.1f}")
    print(f"ours / floor {fastest[0] / user:.2f} of user CPU, {fastest[1] / clock:.2f} on the clock")


if __name__ == "__main__":
    main()

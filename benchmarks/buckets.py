"""Step times of two processes on a CPU (gloo) by size of the gradient buckets, and with a static graph.

    python benchmarks/buckets.py [-methods vox2vec pimpic] [-steps 6] [-rounds 3]

Each process has a thread and a toy network of the method (`gpu_setups`), wider than there, so that its gradients are
some megabytes. A round takes some steps with every setting in turn, each with a DistributedDataParallel of its own on
the same network. The figures are the fastest and the median step of the slower process. On cards NCCL sends the buckets
beside the kernels of the backward pass, which two processes on a CPU do not show.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_setups import config_of, plans_of
from torch import nn
from torch.multiprocessing import start_processes

from nnssl.data.loader import Cases
from nnssl.methods.base import Batch, Method
from nnssl.networks.build import resolve_configuration
from nnssl.networks.pimpic_unet import weights_like_maps
from nnssl.networks.sync_batch_norm import synchronise_batch_norm
from nnssl.pretraining.rehearsal import example_batch
from nnssl.pretraining.setup import Setup

SETTINGS: dict[str, dict[str, Any]] = {
    "1 MB": {"bucket_cap_mb": 1},
    "5 MB": {"bucket_cap_mb": 5},
    "25 MB (torch's default)": {},
    "100 MB": {"bucket_cap_mb": 100},
    "25 MB, static graph": {"static_graph": True},
}
WIDER = {"vox2vec": {"base_channels": 16}, "pimpic": {"base_channels": 16}}
PROCESSES = 2


def main() -> None:
    """Measure in two processes and print a table a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-methods", nargs="+", default=list(WIDER), choices=list(WIDER))
    parser.add_argument(
        "-steps", type=int, default=6, help="of a setting in a round, the first of which is not counted"
    )
    parser.add_argument("-rounds", type=int, default=3)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_measure, (given, port), PROCESSES, start_method="spawn")


def _measure(rank: int, given: argparse.Namespace, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    for method in given.methods:
        _print_table(rank, method, given)
    dist.destroy_process_group()


def _print_table(rank: int, name: str, given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    method = _toy(name)
    with torch.no_grad():
        batch = method.augment(example_batch(method.config, type(method), 1))
    seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    said: set[str] = set()
    for _ in range(given.rounds):
        for setting, options in SETTINGS.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                seconds[setting] += _steps(method, batch, given.steps, options)
            said |= {str(warning.message).splitlines()[0][:100] for warning in caught}
    if rank == 0:
        size = sum(p.numel() * p.element_size() for p in method.parameters() if p.requires_grad) / 2**20
        print(f"{name}: gradients of {size:.1f} MiB, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
        for setting, times in seconds.items():
            print(f"  {setting:26} fastest {min(times):.3f} s, median {statistics.median(times):.3f} s")
        for line in sorted(said):
            print(f"  warning: {line}")


def _toy(name: str) -> Method:
    """The method with its toy network, wider, as the loop has it in several processes."""
    plans = plans_of(name, True)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(WIDER[name])
    config, nobody = config_of(name, plans, True), Cases.of([], [])
    resolved = resolve_configuration(plans, "3d_fullres")
    setup = Setup(name, config, plans, {}, {}, "3d_fullres", "all", nobody, nobody, Path(), resolved=resolved)
    method = setup.build_method()
    synchronise_batch_norm(method)
    weights_like_maps(method)
    return method


def _steps(method: nn.Module, batch: Batch, steps: int, options: dict[str, Any]) -> list[float]:
    """Seconds of forward and backward passes of the slower process, without the first."""
    model = nn.parallel.DistributedDataParallel(method, gradient_as_bucket_view=True, **options)
    found = []
    for _ in range(steps):
        dist.barrier()
        begin = time.perf_counter()
        model(batch).loss.backward()
        spent = torch.tensor(time.perf_counter() - begin)
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        found.append(float(spent))
        method.zero_grad(set_to_none=True)
    return found[1:]


if __name__ == "__main__":
    main()

"""Time and peak memory of the streamed InfoNCE against the plain formula, each in its own process.

    python benchmarks/info_nce.py [-n 10240] [-d 128] [-device cpu|cuda] [-repeats 3]

Memory is what the first forward and backward pass add to the process (CPU: largest resident set) or to the allocator
(CUDA: largest allocation); times are the least of the repeats, CPU seconds those of forward and backward together. The
gradients of the two are compared with each other.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nnssl.methods.shared.info_nce import info_nce

TEMPERATURE = 0.1


def plain(h1: Tensor, h2: Tensor) -> Tensor:
    """Compute the same mean loss from one 2N x 2N matrix, with autograd."""
    n = len(h1)
    z = torch.nn.functional.normalize(torch.cat([h1, h2]), dim=1)
    logits = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    positives = (z[:n] * z[n:]).sum(1).repeat(2) / TEMPERATURE
    return (logits.logsumexp(1) - positives).mean()


def streamed(h1: Tensor, h2: Tensor) -> Tensor:
    """Compute the package's loss."""
    return info_nce(h1, h2, TEMPERATURE)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": plain, "streamed": streamed}


def vectors(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw n matched pairs, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    h1 = torch.randn(n, d, generator=generator)
    h2 = h1 + torch.randn(n, d, generator=generator)
    return h1.to(device).requires_grad_(), h2.to(device).requires_grad_()


def peak_bytes(device: str) -> int:
    """Return the most memory that was in use so far."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return torch.cuda.max_memory_allocated()


def wait(device: str) -> float:
    """Wait for the device and return the time."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, n: int, d: int, device: str, repeats: int, gradients_to: Path) -> None:
    """Measure one of the losses in this process, print it and leave its gradients in a file."""
    loss = LOSSES[name]
    loss(*vectors(64, d, device)).backward()  # the libraries' memory does not count
    h1, h2 = vectors(n, d, device)
    before, forward, backward, processor = peak_bytes(device), math.inf, math.inf, math.inf
    for repeat in range(repeats):
        h1.grad = h2.grad = None
        start, busy = wait(device), time.process_time()
        value = loss(h1, h2)
        middle = wait(device)
        value.backward()
        end = wait(device)
        if repeat == 0:
            memory = peak_bytes(device) - before
        forward, backward = min(forward, middle - start), min(backward, end - middle)
        processor = min(processor, time.process_time() - busy)
    print(
        f"{name:9} forward {forward:7.3f} s  backward {backward:7.3f} s  CPU {processor:7.2f} s  "
        f"peak memory {memory / 2**20:8.1f} MiB  loss {value.item():.7f}",
        flush=True,
    )
    torch.save([h1.grad, h2.grad], gradients_to)


def main() -> None:
    """Measure both losses and compare their gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10240, help="pairs of voxels")
    parser.add_argument("-d", type=int, default=128, help="length of the vectors")
    parser.add_argument("-device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-only", choices=list(LOSSES), help=argparse.SUPPRESS)
    parser.add_argument("-gradients", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        measure(given.only, given.n, given.d, given.device, given.repeats, given.gradients)
        return
    print(
        f"N {given.n}, d {given.d}, {given.device}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.pt" for name in LOSSES}
        for name, file in files.items():
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "-only", name, "-gradients", str(file)], check=True
            )
        grads = {name: torch.cat(torch.load(file, weights_only=True)) for name, file in files.items()}
    difference = (grads["plain"] - grads["streamed"]).abs().max() / grads["plain"].abs().max()
    print(f"largest difference of the gradients / largest gradient: {difference.item():.1e}")


if __name__ == "__main__":
    main()

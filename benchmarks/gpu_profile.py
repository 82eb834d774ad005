"""The kernels and operators in which a method's step spends a card's time.

    PYTHONPATH=. python benchmarks/gpu_profile.py -only vox2vec unet_mae > profile.txt
    PYTHONPATH=. python benchmarks/gpu_profile.py -device cpu -small -only sam     (a test of the script itself)

Sizes are those of `gpu.py`. Times are means of two steps after a warm-up, under torch's profiler, which slows the host:
the kernels' sum tells how long a card works, `gpu.py` how long a step takes. A step that takes much longer than its
kernels waits for the host to start them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from gpu_setups import PRESETS, config_of, make_setup, plans_of, spacing_of
from gpu_step import Stepper, release, sampled
from gpu_volumes import draw_torsos, write_volumes
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_WARM, _STEPS, _LINES = 4, 2, 16


def profiled(stepper: Stepper, batch: dict[str, torch.Tensor]) -> list[str]:
    """Lines: a summary, the longest kernels (none on a CPU), the longest operators; milliseconds and calls a step."""
    card = stepper.device.type == "cuda"
    for number in range(_WARM):
        stepper.step(batch, number, lambda: None)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
    with profile(activities=activities) as found:
        for number in range(_WARM, _WARM + _STEPS):
            stepper.step(batch, number, lambda: None)
        if card:
            torch.cuda.synchronize()
    kernels: list[tuple[float, int, str]] = []
    operators: list[tuple[float, int, str]] = []
    for event in found.key_averages():
        microseconds = event.self_device_time_total if card else event.self_cpu_time_total
        if microseconds:
            row = (microseconds / 1000 / _STEPS, event.count // _STEPS, event.key)
            (kernels if event.device_type == DeviceType.CUDA else operators).append(row)
    lines = [f"  {sum(row[1] for row in kernels)} kernels, {sum(row[0] for row in kernels):.1f} ms"] if card else []
    for rows in (kernels, operators):
        lines += [f"  {ms:8.2f} ms {count:5d} x {name[:90]}" for ms, count, name in sorted(rows, reverse=True)[:_LINES]]
        lines += ["  --"] if rows is kernels and card else []
    return lines


def main() -> None:
    """Profile the methods one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda")
    parser.add_argument("-only", nargs="+", choices=[*PRESETS], default=[*PRESETS], metavar="METHOD")
    parser.add_argument("-small", action="store_true", help="toy sizes, to try the script")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = given.device == "cuda"
    torsos, written = draw_torsos(2), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for method in given.only:
            plans = plans_of(method, given.small)
            if PRESETS[method] not in written:
                spacing = spacing_of(plans, given.small)
                written[PRESETS[method]] = write_volumes(root, PRESETS[method], plans, torsos, spacing)
            volumes = written[PRESETS[method]]
            config = config_of(method, plans, given.small)
            setup = make_setup(method, config, plans, volumes, volumes.cases(), root)
            print(method, *profiled(Stepper(setup, device), sampled(setup, device)[0]), sep="\n", flush=True)
            release(device)


if __name__ == "__main__":
    main()

"""CPU time that one loader worker takes for a volume, by method at its preset's sizes, beside what a card takes.

    python benchmarks/loader.py [-before CHECKOUT] [-only mae alice ...]

The volume is a synthetic CT in the page cache, stored as nnssl_plan_and_preprocess stores it for the preset. One worker
process draws the samples, makes batches and hands them over, and this process takes them: both are counted, in user and
system time, which other programs on the machine change less than wall time. Starting the worker is left out. With
-before, another checkout of the package is measured in turn with this one, on volumes that it stores itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_setups import PRESETS, config_of, plans_of
from torch.nn.functional import interpolate

from nnssl.data.loader import Cases, SampleDataset, make_loader, next_batch, stop_workers
from nnssl.data.prepare_resized import prepare_resized_bodies
from nnssl.data.storage import done_cases, save_case
from nnssl.data.volumes import Channel, VolumeFolder
from nnssl.methods.registry import get_method

# Volumes a second of one H100 at 105 TFLOP/s, from the operations of a step at the preset's sizes.
TAKES = {"vox2vec": 147, "pimpic": 17, "voco": 17, "lapn": 8.6, "sam": 183, "mae": 930, "alice": 201}
CORES = 8
VOLUMES = 32  # measured, at least
WARM = 7  # batches before: the worker has then used all of its shared memory once
AHEAD = 6  # batches after, so that the worker does not run out of work
LOW, HIGH, MEAN, STD = -1000.0, 1000.0, -200.0, 350.0  # of the stored HU
CT = Channel("CTNormalization", MEAN, STD)
PAIR = ("case_0", "case_1")  # one volume under two names: Alice needs another one


@dataclass(frozen=True)
class Cost:
    """CPU seconds a volume: of the worker, and of the process that trains."""

    user: float
    system: float
    trainer: float

    @property
    def worker(self) -> float:
        """User and system time."""
        return self.user + self.system


def main() -> None:
    """Measure in processes of their own, in turn, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-only", nargs="+", default=list(PRESETS), choices=list(PRESETS), metavar="METHOD")
    parser.add_argument("-before", type=Path, help="another checkout of this package")
    parser.add_argument("-size", type=int, nargs=3, default=(300, 512, 512), help="voxels (z, y, x)")
    parser.add_argument("-repeats", type=int, default=3)
    parser.add_argument("-output", type=Path, help="file for the tables too")
    parser.add_argument("-measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        (method,) = arguments.only
        print(json.dumps(asdict(measured(method, arguments.measure, tuple(arguments.size)))))
        return
    here = Path(__file__).parents[1]
    checkouts = {"before": arguments.before.resolve(), "now": here} if arguments.before else {"now": here}
    with tempfile.TemporaryDirectory() as folder:
        rows = {method: in_turn(method, checkouts, Path(folder), arguments) for method in arguments.only}
    text = "\n\n".join(table(name, {method: row[name] for method, row in rows.items()}) for name in checkouts)
    print(text)
    if arguments.output is not None:
        size = " x ".join(map(str, arguments.size))
        arguments.output.write_text(f"one volume of {size} voxels, torch {torch.__version__}, median of "
                                    f"{arguments.repeats}\n\n{text}\n")  # fmt: skip


def in_turn(
    method: str, checkouts: dict[str, Path], folder: Path, arguments: argparse.Namespace
) -> dict[str, list[Cost]]:
    """Costs of every repeat by checkout."""
    found: dict[str, list[Cost]] = {name: [] for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            line = [sys.executable, __file__, "-only", method, "-measure", str(folder / name), "-size",
                    *map(str, arguments.size)]  # fmt: skip
            environment = {**os.environ, "PYTHONPATH": str(checkout), "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(Cost(**json.loads(done.stdout.splitlines()[-1])))
            print(f"{name:>6} {method:8} {found[name][-1].worker:.4f} s", flush=True)
    return found


def table(title: str, rows: dict[str, list[Cost]]) -> str:
    """One line a method: the repeat with the median of the worker's time."""
    lines = [f"{title:10}{'s a volume':>12}{'user':>8}{'system':>8}{'trainer':>9}{f'{CORES} cores give/s':>16}"
             f"{'an H100 takes/s':>17}{'ratio':>7}"]  # fmt: skip
    for method, costs in rows.items():
        cost = sorted(costs, key=lambda c: c.worker)[len(costs) // 2]
        gives, takes = CORES / cost.worker, TAKES[method]
        lines.append(f"{method:10}{cost.worker:12.4f}{cost.user:8.4f}{cost.system:8.4f}{cost.trainer:9.4f}{gives:16.0f}"
                     f"{takes:17g}{gives / takes:7.2f}")  # fmt: skip
    return "\n".join(lines)


def measured(method: str, root: Path, size: tuple[int, int, int]) -> Cost:
    """The cost of a volume, in this process and one worker."""
    plans = plans_of(method, False)
    config: Any = config_of(method, plans, False)
    volumes = stored(root, config.patch, size)
    cases = Cases.of([volumes], [PAIR])
    cls = get_method(method)
    if (largest := cls.resized_body(config)) is not None:
        prepare_resized_bodies([cases], largest, 1)
    dataset = SampleDataset(cls, config, cases, Cases.of([volumes], [[]]))
    return drawn(dataset, -(-VOLUMES // config.volumes))


def drawn(dataset: SampleDataset, steps: int) -> Cost:
    """CPU seconds a volume over some steps, between two moments at which the worker is equally far ahead."""
    volumes, count = dataset.config.volumes, WARM + steps + AHEAD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without a card, where the trainer takes batches unpinned
        loader = make_loader(dataset, [("train", i) for i in range(count)], range(volumes), torch.device("cuda"))
        batches: Any = iter(loader)
    for step in range(WARM + steps):
        if step == WARM:
            before = _spent(batches)
        batch = next_batch(batches)
        sum(float(tensor.flatten()[::1024].sum()) for tensor in batch.tensors.values())  # touches every page
    after = _spent(batches)
    stop_workers(batches)
    return Cost(*((b - a) / (steps * volumes) for a, b in zip(before, after, strict=True)))


def _spent(batches: Any) -> tuple[float, float, float]:
    """User and system seconds of the worker so far, and both of this process."""
    (worker,) = batches._workers
    user, system = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    own, ticks = resource.getrusage(resource.RUSAGE_SELF), os.sysconf("SC_CLK_TCK")
    return int(user) / ticks, int(system) / ticks, own.ru_utime + own.ru_stime


def stored(root: Path, patch: tuple[int, int, int], size: tuple[int, int, int]) -> VolumeFolder:
    """The folder of the volume, which is made where it is missing."""
    images = root / "Dataset500_Drawn" / ("volumes_" + "x".join(map(str, patch)))
    folder = VolumeFolder("Dataset500_Drawn", images, images.with_name(f"{images.name}_body"), (1.5, 0.8, 0.8), (CT,))
    if set(PAIR) <= done_cases(images):
        return folder
    images.parent.mkdir(parents=True, exist_ok=True)
    hu, body = draw_ct(size)
    image = ((hu.clip(LOW, HIGH) - MEAN) / STD)[None]
    save_case(images, PAIR[0], image, np.where(body, 0, -1)[None], {}, body, patch)
    for home, end in ((images, ".pkl"), (images, "_seg.b2nd"), (images, ".b2nd"), (folder.bodies, ".b2nd")):
        os.link(home / f"{PAIR[0]}{end}", home / f"{PAIR[1]}{end}")
    return folder


def draw_ct(size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """HU (Z, Y, X) and body of a cylinder with organs and noise, not whole numbers: as after resampling."""
    rng = np.random.default_rng(0)
    _, y, x = np.meshgrid(*(np.linspace(-1.2, 1.2, n, dtype=np.float32) for n in size), indexing="ij", sparse=True)
    body = np.broadcast_to((y / 0.8) ** 2 + x**2 < 1, size)
    coarse = torch.from_numpy(rng.choice([-800.0, -100.0, 40.0, 120.0, 600.0], [-(-n // 24) for n in size])).float()
    hu = interpolate(coarse[None, None], size, mode="trilinear")[0, 0].numpy()
    for plane, inside in zip(hu, body, strict=True):
        plane += rng.normal(0, 15, plane.shape).astype(np.float32)
        plane[~inside] = -1024
    return hu, body


if __name__ == "__main__":
    main()

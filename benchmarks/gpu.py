"""Measure the package on one GPU in at most ten minutes: steps of all methods, and a short run.

    PYTHONPATH=. python benchmarks/gpu.py -o benchmarks/results
    PYTHONPATH=. python benchmarks/gpu.py -device cpu -small         (a test of the script itself)

1. Every method takes steps at its paper's size: network, patch, batch and crops of its preset in `plans/`, default
   options, the loop's autocast (bf16 if the card has it), on crops of phantom torsos that it samples. If memory is
   short, the batch is halved until it fits, and the report says so.
2. One method (-m) is pretrained for some minutes through the loop, with workers, probe and checkpoints.
3. Other memory layouts of the convolutions are tried where the package chooses one.

`samples/s` counts volumes, as the loop does. `aug` to `opt` are shares of a step: augmentation with the copy to the
card, forward and backward pass, optimiser with clipping and momentum network. `TFLOP` is torch's count for one forward
and backward pass (with the work that gradient checkpoints repeat), `TFLOP/s` that over the whole step, and `peak` its
share of a large matrix product measured on the same card. `sample ms` is the time of a loader worker for one volume.
The files are written after every part, so that an interrupted call leaves its results.

It does not need nnU-Net, batchgenerators(v2), acvl-utils, SimpleITK, scikit-learn, nibabel or pandas. Besides torch and
numpy it needs scipy, tqdm and matplotlib (any recent versions) and these small packages (in the versions it was tried
with):

    blosc2==4.14.1 with ndindex==1.10.1, numexpr==2.14.2, msgpack==1.2.4 and httpx==0.28.1, which it imports
    monai==1.6.1 and einops==0.8.2             voco, lapn, mae, alice
    dynamic-network-architectures==0.4.4       sam (with pip's --no-deps: it asks for timm, which is not used here)
    nvidia-ml-py==13.615.71                    the energy of the run; optional

The report names methods whose network lacks its package, and the others go on.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_report import Report, describe_machine, time_matrix_product
from gpu_run import short_run
from gpu_setups import PRESETS, BenchmarkSetup, config_of, make_setup, plans_of, spacing_of
from gpu_step import LAYOUTS, StepResult, measure, measure_what_fits, release
from gpu_volumes import draw_torsos, write_volumes

from nnssl.core.distributed import check_device
from nnssl.core.errors import UserError
from nnssl.data.volumes import VolumeFolder
from nnssl.demo.phantom import Torso

log = logging.getLogger("nnssl")


class Benchmark:
    """The parts and their shared state.

    Args:
        device: to measure on.
        small: toy sizes.
        seconds: time after which no part starts.
        folder: of the result files, if any.
        root: an empty folder for volumes and the run.
    """

    def __init__(self, device: torch.device, small: bool, seconds: float, folder: Path | None, root: Path) -> None:
        self.device, self.small, self.root, self.end = device, small, root, time.monotonic() + seconds
        self.report = Report(describe_machine(device), time_matrix_product(device, small), folder, small)
        self.labelled = 2 if small else 6
        self.torsos: list[Torso] = []
        self.failed = False
        self._volumes: dict[str, VolumeFolder] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def part(self, name: str, work: Callable[[], object]) -> None:
        """Do a part if there is time, note failures, and write the report."""
        log.info(f"{name} ({self.left:.0f} s left)")
        if self.left <= 0:
            self.report.notes.append(f"{name}: not begun, the time was used up")
        else:
            try:
                work()
            except (UserError, ImportError) as error:
                self.report.notes.append(f"{name}: {error}")
            except (RuntimeError, ValueError) as error:  # a method that fails must not cost the others' figures
                log.exception(name)
                self.failed = True
                self.report.notes.append(f"{name}: FAILED, {type(error).__name__}: {str(error).splitlines()[0]}")
        release(self.device)
        self.report.write()

    def draw(self) -> None:
        """The phantoms of all parts."""
        self.torsos = draw_torsos(2 + self.labelled if self.small else 12 + self.labelled)

    def step(self, method: str, layout: str = "package") -> None:
        """Measure a method's step and add it to the report."""
        plans, known = plans_of(method, self.small), self.measured(method)
        options = {} if known is None else {"batch_size": known.batch}
        if known is not None and known.crops is not None:
            options["crops"] = known.crops
        volumes = self.volumes(method, plans)
        setup = make_setup(method, config_of(method, plans, self.small, **options), plans, volumes, volumes.cases(),
                           self.root)  # fmt: skip
        seconds = min(8.0, max(1.0, self.left / 10))

        def run(setup: BenchmarkSetup) -> StepResult:
            return measure(setup, self.device, seconds, self.small, layout, count=known is None)

        result = measure_what_fits(setup, run, self.device)
        self.report.steps.append(result if known is None else replace(result, flop=known.flop))

    def volumes(self, method: str, plans: dict[str, Any]) -> VolumeFolder:
        """Two phantoms, preprocessed for a method's preset; written once."""
        if PRESETS[method] not in self._volumes:
            self._volumes[PRESETS[method]] = write_volumes(
                self.root, PRESETS[method], plans, self.torsos[:2], spacing_of(plans, self.small)
            )
        return self._volumes[PRESETS[method]]

    def measured(self, method: str) -> StepResult | None:
        """The step of a method in the package's own layout, if there is one."""
        return next((s for s in self.report.steps if (s.method, s.layout) == (method, "package")), None)

    def run(self, method: str, seconds: float) -> None:
        """Pretrain a method whose step was measured."""
        alone = self.measured(method)
        if alone is None:
            raise UserError("its step could not be measured")
        self.report.run = short_run(alone, self.torsos, self.labelled, self.device, min(seconds, 0.6 * self.left),
                                    self.small, self.root)  # fmt: skip


def measure_all(benchmark: Benchmark, methods: Sequence[str], pretrained: str | None, run_seconds: float) -> None:
    """All parts, the most telling ones first."""
    benchmark.part("drawing phantoms", benchmark.draw)
    first = [pretrained] if pretrained else []
    for method in dict.fromkeys([*first, *methods]):
        benchmark.part(f"step of {method}", partial(benchmark.step, method))
    if pretrained:
        benchmark.part(f"short run of {pretrained}", partial(benchmark.run, pretrained, run_seconds))
    for method in methods:
        for layout in LAYOUTS.get(method, ()) if benchmark.measured(method) else ():
            benchmark.part(f"{layout} of {method}", partial(benchmark.step, method, layout))


def main() -> int:
    """Measure, print the report; 1 where a part failed that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda")
    parser.add_argument("-only", nargs="+", choices=[*PRESETS], default=[*PRESETS], metavar="METHOD",
                        help="methods whose steps are measured; all by default")  # fmt: skip
    parser.add_argument("-m", choices=[*PRESETS, "none"], default="vox2vec", help="method of the short run, or none")
    parser.add_argument("-seconds", type=float, default=480.0, help="start no part after this time (default 480)")
    parser.add_argument("-run_seconds", type=float, default=120.0, help="of the short run's training (default 120)")
    parser.add_argument("-small", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="write gpu_<card>.txt and .json there")
    given = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        check_device(given.device, 1)
    except UserError as error:
        log.error(f"error: {error}")
        return 1
    torch.backends.cudnn.benchmark = given.device == "cuda"  # as the command that starts the loop sets it
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(torch.device(given.device), given.small, given.seconds, given.o, Path(folder))
        measure_all(benchmark, given.only, None if given.m == "none" else given.m, given.run_seconds)
    print(benchmark.report.text(), end="")
    return int(benchmark.failed)


if __name__ == "__main__":
    sys.exit(main())

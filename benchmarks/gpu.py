"""Measure the package on one GPU in at most ten minutes: steps of all methods, and a short run.

    PYTHONPATH=. python benchmarks/gpu.py -o benchmarks/results
    PYTHONPATH=. python benchmarks/gpu.py -device cpu -small         (a test of the script itself)

The file of the card is added to: what it has is kept, and the same line again goes on after an interruption or when the
time was used up. `-only` names the methods, `-again` those that are measured anew.

1. Every method takes steps at its paper's size: network, patch, batch and crops of its preset in `plans/`, default
   options, the loop's autocast (bf16 if the card has it), on crops of phantom torsos that it samples. If memory is
   short, the batch is halved until it fits, and the report says so.
2. One method (-m) is pretrained for some minutes through the loop, with workers, probe and checkpoints. The probe's
   heads are trained on the network before its first step too, the baseline of its Dice.
3. Each method's published formula, written out plainly in float32 and under bf16, is timed in turn with ours.
4. Every method runs through the loop for some seconds on two volumes in the page cache: its data-wait, and the
   operations of a step for which the host waits, by line of the package (torch's synchronisation debug mode).
5. Variants of the step (-variants): other memory layouts of the convolutions where the package chooses one, the
   optimiser's other kernel, networks compiled as with nnUNet_compile=t.

`samples/s` counts volumes, as the loop does. `aug` to `opt` are shares of a step: augmentation with the copy to the
card, forward and backward pass, optimiser with clipping and momentum network. `TFLOP` is torch's count for one forward
and backward pass (with the work that gradient checkpoints repeat), `TFLOP/s` that over the whole step, and `peak` its
share of a large matrix product measured on the same card. `GiB` is the measured peak of memory, `rehearsed` that of the
package's rehearsal, which docs/presets.md shows and a run announces. `sample ms` is the time of a loader worker for one
volume.
The files are written after every part, so that an interrupted call leaves its results.

It does not need nnU-Net, batchgenerators(v2), acvl-utils, SimpleITK, scikit-learn, nibabel or pandas. Beside torch and
numpy it needs these packages, 63.7 MiB of wheels for Python 3.12 in the versions named (pip's --no-deps keeps out what
they ask for and is not used here):

    scipy 1.17.1 (33.6 MiB), tqdm 4.70.1 (0.1)
    pydantic 2.14.4 (0.5), pydantic-core 2.50.5 (2.2), annotated-types 0.8.0, typing-inspection 0.4.5
    matplotlib 3.10.9 (8.4), pillow 13.0.0 (6.8), kiwisolver 1.5.1 (1.4), contourpy 1.3.3 (0.3), pyparsing 3.3.3,
        packaging 26.4, python-dateutil 4.0.0, six 1.17.0, cycler 0.12.1 (0.4 together)
    blosc2 4.14.1 (6.4), ndindex 1.10.1 (0.5), numexpr 2.14.2 (0.4), msgpack 1.2.4 (0.5), and for httpx 0.28.1, which
        blosc2 imports: httpcore 1.0.9, h11 0.16.0, anyio 4.16.0, idna 3.20, certifi (0.5 together)
    monai 1.6.1 (1.6), einops 0.8.2 (0.1)         voco, lapn, mae, alice
    dynamic-network-architectures 0.4.4 (0.1)     sam, simclr, unet_mae, volumefusion
    nvidia-ml-py 13.615.71 (0.1)                  the energy of the run; optional

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
from gpu_plain import compare
from gpu_report import Report, describe_machine, time_matrix_product
from gpu_run import short_run
from gpu_setups import PRESETS, BenchmarkSetup, config_of, make_setup, plans_of, spacing_of
from gpu_step import StepResult, measure, measure_what_fits, release
from gpu_variants import PACKAGE, VARIANTS, variants_of
from gpu_volumes import draw_torsos, write_volumes

from nnssl.core.distributed import check_device
from nnssl.core.errors import UserError
from nnssl.core.signals import EXIT_INTERRUPTED, Interrupted
from nnssl.data.volumes import VolumeFolder
from nnssl.demo.phantom import Torso
from nnssl.pretraining.rehearsal import rehearse

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
        self._torsos: list[Torso] = []
        self.failed = False
        self._volumes: dict[str, VolumeFolder] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def part(self, name: str, work: Callable[[], object], done: bool = False) -> None:
        """Do a part, unless it is done already, if there is time; note failures, and write the report."""
        if done:
            return
        log.info(f"{name} ({self.left:.0f} s left)")
        self.report.notes.pop(name, None)
        if self.left <= 0:
            self.report.notes[name] = "not begun, the time was used up; the same line again goes on"
        else:
            try:
                work()
            except (UserError, ImportError) as error:
                self.report.notes[name] = str(error)
            except Interrupted:  # what is measured is in the file
                raise SystemExit(EXIT_INTERRUPTED) from None
            except Exception as error:  # a method that fails must not cost the others' figures
                log.exception(name)
                self.failed = True
                self.report.notes[name] = f"FAILED, {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        release(self.device)
        self.report.write()

    @property
    def torsos(self) -> list[Torso]:
        """The phantoms of all parts; drawn once."""
        if not self._torsos:
            self._torsos = draw_torsos(2 + self.labelled if self.small else 12 + self.labelled)
        return self._torsos

    def step(self, method: str, variant: str = PACKAGE) -> None:
        """Measure a method's step and add it to the report; a variant takes the batch that fitted."""
        known = self.report.step(method)
        setup = self.setup(method, known)
        seconds = min(8.0, max(1.0, self.left / 10))

        def run(setup: BenchmarkSetup) -> StepResult:
            return measure(setup, self.device, seconds, self.small, variant, count=known is None)

        result = measure_what_fits(setup, run, self.device)
        self.report.steps.append(result if known is None else replace(result, flop=known.flop))

    def rehearse(self, method: str) -> None:
        """Add the rehearsed peak to a step."""
        known = self.report.step(method)
        assert known is not None
        peak = rehearse(self.setup(method, known)).peak_gib
        self.report.steps = [replace(s, rehearsed=peak) if s is known else s for s in self.report.steps]

    def setup(self, method: str, known: StepResult | None) -> BenchmarkSetup:
        """A run of a method at the size of its preset, or at that of a known step."""
        plans = plans_of(method, self.small)
        options = {} if known is None else {"batch_size": known.batch}
        if known is not None and known.crops is not None and method != "simclr":  # there a property
            options["crops"] = known.crops
        volumes = self.volumes(method, plans)
        return make_setup(method, config_of(method, plans, self.small, **options), plans, volumes, volumes.cases(),
                          self.root)  # fmt: skip

    def formula(self, method: str) -> None:
        """Time a method's formula against its plain form."""
        self.report.formulas[method] = compare(method, self.device, 3.0, self.small)

    def volumes(self, method: str, plans: dict[str, Any]) -> VolumeFolder:
        """Two phantoms, preprocessed for a method's preset; written once."""
        if PRESETS[method] not in self._volumes:
            self._volumes[PRESETS[method]] = write_volumes(
                self.root, PRESETS[method], plans, self.torsos[:2], spacing_of(plans, self.small)
            )
        return self._volumes[PRESETS[method]]

    def run(self, method: str, probed: bool, seconds: float) -> None:
        """Pretrain a method whose step was measured, with the probe on a dataset of its own if `probed`."""
        alone, plans = self.report.step(method), plans_of(method, self.small)
        if alone is None:
            raise UserError("its step could not be measured")
        volumes, labelled = self.volumes(method, plans), None
        if probed:
            spacing, torsos = spacing_of(plans, self.small), self.torsos
            volumes = write_volumes(self.root, "Dataset500_PhantomTorso", plans, torsos[: -self.labelled], spacing)
            labelled = write_volumes(self.root, "Dataset017_PhantomOrgans", plans, torsos[-self.labelled :], spacing)
        self.report.runs[method] = short_run(alone, volumes, labelled, self.device, min(seconds, 0.6 * self.left),
                                             self.small, self.root / f"run_{method}_{int(probed)}")  # fmt: skip


def measure_all(
    benchmark: Benchmark, methods: Sequence[str], pretrained: str | None, run_seconds: float, variants: Sequence[str],
    again: Sequence[str] = (),
) -> None:  # fmt: skip
    """All parts that the report lacks, the most telling ones first, and all of the methods `again`."""
    report = benchmark.report
    for method in dict.fromkeys([*([pretrained] if pretrained else []), *methods]):
        if method in again and benchmark.left > 0:  # what cannot be measured again is kept
            report.forget(method)
        benchmark.part(f"step of {method}", partial(benchmark.step, method), report.step(method) is not None)
    if pretrained:
        done = "untrained" in report.runs.get(pretrained, {})
        benchmark.part(
            f"run of {pretrained} with the probe", partial(benchmark.run, pretrained, True, run_seconds), done
        )
    for method in methods:
        benchmark.part(f"formula of {method}", partial(benchmark.formula, method), method in report.formulas)
    measured = {method: step for method in methods if (step := report.step(method))}
    for method, step in measured.items():
        benchmark.part(f"rehearsal of {method}", partial(benchmark.rehearse, method), step.rehearsed is not None)
    for method in measured:
        benchmark.part(f"run of {method}", partial(benchmark.run, method, False, 10.0), method in report.runs)
    for method in measured:
        for variant in [v for v in variants_of(method, benchmark.device) if v in variants]:
            work = partial(benchmark.step, method, variant)
            benchmark.part(f"{variant} of {method}", work, report.step(method, variant) is not None)


def main() -> int:
    """Measure, print the report; 1 where a part failed that should not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda")
    parser.add_argument("-only", nargs="+", choices=[*PRESETS], default=[*PRESETS], metavar="METHOD",
                        help="methods whose steps are measured; all by default")  # fmt: skip
    parser.add_argument("-m", choices=[*PRESETS, "none"], default="vox2vec", help="method of the short run, or none")
    parser.add_argument("-again", nargs="+", choices=[*PRESETS], default=[], metavar="METHOD",
                        help="measure these anew, although the file of this card has them")  # fmt: skip
    parser.add_argument("-variants", nargs="*", choices=VARIANTS, default=VARIANTS, metavar="VARIANT",
                        help=f"of the step to try: {', '.join(VARIANTS)}; all that differ by default")  # fmt: skip
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
        try:
            benchmark.report.resume()
        except UserError as error:
            log.error(f"error: {error}")
            return 1
        measure_all(benchmark, given.only, None if given.m == "none" else given.m, given.run_seconds, given.variants,
                    given.again)  # fmt: skip
    print(benchmark.report.text(), end="")
    return int(benchmark.failed)


if __name__ == "__main__":
    sys.exit(main())

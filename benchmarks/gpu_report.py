"""The machine, its best matrix product, and the table that is printed and kept."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_step import PARTS, StepResult, Timeline
from gpu_variants import PACKAGE

from nnssl.core.errors import UserError
from nnssl.methods.base import MethodConfig
from nnssl.pretraining.optimisation import choose_precision

_HEADER = ("method", "variant", "network", "batch", "patch", "ms", "samples/s", "aug", "fwd", "bwd", "opt", "GiB",
           "rehearsed", "TFLOP", "TFLOP/s", "peak", "sample ms")  # fmt: skip
_SETTINGS = ("device", "torch", "autocast", "driver", "CUDA, cuDNN", "cudnn.benchmark", "TF32", "threads")


_LEFT = 5  # columns of words


@dataclass
class Report:
    """The measurements so far; written after every part, so that an interrupted call leaves them.

    Args:
        machine: by name.
        matrix_product: its measured FLOP/s.
        folder: of the files; None: they are not written.
        small: toy sizes.
        steps: of all methods and variants.
        formulas: by method, see `gpu_plain.compare`.
        runs: by method, see `gpu_run.short_run`.
        notes: by part, sentences on what is missing.
    """

    machine: dict[str, str]
    matrix_product: float
    folder: Path | None
    small: bool
    steps: list[StepResult] = field(default_factory=list)
    formulas: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def resume(self) -> None:
        """Take over what the file has of earlier calls on the same machine.

        Raises:
            UserError: it was measured with another version or other settings.
        """
        if self.folder is None or not (file := self._file("json")).exists():
            return
        before = json.loads(file.read_text())
        other = [name for name in _SETTINGS if before["machine"].get(name) != self.machine.get(name)]
        if other:
            then, now = (machine.get(other[0]) for machine in (before["machine"], self.machine))
            raise UserError(f"{file} was measured with another {other[0]} ({then}, now {now}); move the file away, or "
                            f"name another folder with -o")  # fmt: skip
        self.matrix_product = max(self.matrix_product, before["matrix_product_flop_per_second"])
        self.steps = [StepResult.of_json(step) for step in before["steps"]]
        self.formulas, self.runs, self.notes = before["formulas"], before["runs"], before["notes"]

    def step(self, method: str, variant: str = PACKAGE) -> StepResult | None:
        """A step that is measured."""
        return next((s for s in self.steps if (s.method, s.variant) == (method, variant)), None)

    def forget(self, method: str) -> None:
        """Drop all of a method, which is to be measured again."""
        self.steps = [step for step in self.steps if step.method != method]
        self.formulas.pop(method, None)
        self.runs.pop(method, None)

    def text(self) -> str:
        """The whole report."""
        lines = [f"{name}: {value}" for name, value in self.machine.items()]
        lines.append(f"matrix product: {self.matrix_product / 1e12:.3g} TFLOP/s")
        lines += ["", *_aligned([_HEADER, *(self._row(step) for step in self.steps)])]
        lines += [f"{s.method}: out of memory with {', '.join(s.out_of_memory)} (volumes x crops)"
                  for s in self.steps if s.out_of_memory]  # fmt: skip
        if self.formulas:
            lines += ["", *_aligned(_formula_rows(self.formulas), 3)]
        if self.runs:
            lines += ["", *_aligned(_loop_rows(self.runs), 1)]
            lines += [f"{method}: the host waits at {line} ({count})" for method, run in self.runs.items()
                      for line, count in (run["waits"] or {}).items()]  # fmt: skip
        for run in self.runs.values():
            lines += ["", *_run_lines(run)] if "untrained" in run else []
        notes = [f"{part}: {note}" for part, note in self.notes.items()]
        return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

    def write(self) -> None:
        """Replace both files."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        steps = [{**asdict(s), "samples_per_second": s.samples_per_second} for s in self.steps]
        content = {"machine": self.machine, "matrix_product_flop_per_second": self.matrix_product, "steps": steps,
                   "formulas": self.formulas, "runs": self.runs, "notes": self.notes}  # fmt: skip
        for ending, text in (("txt", self.text()), ("json", json.dumps(content, indent=1) + "\n")):
            temporary = self._file(ending).with_name(f".{self._file(ending).name}")
            temporary.write_text(text)
            temporary.replace(self._file(ending))

    def _file(self, ending: str) -> Path:
        assert self.folder is not None
        name = re.sub(r"\W+", "_", self.machine["device"]).strip("_") + ("_small" if self.small else "")
        return self.folder / f"gpu_{name}.{ending}"

    def _row(self, s: StepResult) -> tuple[str, ...]:
        rate = s.flop and s.flop / s.step
        counted = [f"{s.flop / 1e12:.3g}", f"{rate / 1e12:.3g}", _percent(rate / self.matrix_product)] \
            if s.flop and rate else ["-"] * 3  # fmt: skip
        crops = f" x {s.crops}" if s.crops else ""
        return (s.method, s.variant, f"{s.network} {s.parameters / 1e6:.1f} M", f"{s.batch}{crops}",
                ",".join(map(str, s.patch)), f"{1000 * s.step:.1f}", f"{s.samples_per_second:.3g}",
                *(_percent(s.parts[part] / sum(s.parts.values())) for part in PARTS), f"{s.memory:.2f}",
                "-" if s.rehearsed is None else f"{s.rehearsed:.2f}", *counted, f"{1000 * s.sampling:.0f}")  # fmt: skip


def describe_machine(device: torch.device) -> dict[str, str]:
    """Card, driver, versions, and the settings that the figures depend on."""
    precision = choose_precision(MethodConfig(), device)
    machine = {"device": "cpu", "torch": torch.__version__, "autocast": str(precision).removeprefix("torch.")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "device": properties.name,
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "driver": _driver(),
            "CUDA, cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
            "cudnn.benchmark": str(torch.backends.cudnn.benchmark),
            "TF32": f"convolutions {torch.backends.cudnn.allow_tf32}, "
                    f"matrix products {torch.backends.cuda.matmul.allow_tf32}",
        }  # fmt: skip
    return {**machine, "threads": str(torch.get_num_threads()), "system": f"{platform.system()} {platform.machine()}"}


def time_matrix_product(device: torch.device, small: bool) -> float:
    """FLOP/s of a square product of random matrices in the precision of the autocast, median of ten."""
    size = 512 if small else 8192 if device.type == "cuda" else 2048
    precision = choose_precision(MethodConfig(), device)
    a, b = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    for _ in range(3):
        a @ b
    timeline = Timeline(device)
    timeline.mark()
    for _ in range(10):
        a @ b
        timeline.mark()
    return 2.0 * size**3 / median(timeline.seconds())


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.split()
    return found[0] if found else "unknown"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _aligned(rows: list[tuple[str, ...]], left: int = _LEFT) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return lines


def _formula_rows(formulas: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Each formula in turn; the first columns are words."""
    rows: list[tuple[str, ...]] = [("method", "formula", "as", "ms", "GiB added", "value")]
    for method, found in formulas.items():
        for row in found["rows"]:
            spent = "no memory" if row["seconds"] is None else f"{1000 * row['seconds']:.3g}"
            rows.append((method, found["formula"], row["name"], spent, _cell(row["memory"]), _cell(row["value"])))
    return rows


def _loop_rows(runs: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("through the loop", "workers", "samples/s", "alone", "data-wait", "host waits a step")
    ]
    for method, run in runs.items():
        after = run["after_the_first"]
        waits = "not on a card" if run["waits"] is None else str(sum(run["waits"].values()))
        rows.append((method, str(run["workers"]), f"{after['samples_per_second']:.3g}", f"{run['alone']:.3g}",
                     _percent(after["data_wait"]), waits))  # fmt: skip
    return rows


def _run_lines(run: dict[str, Any]) -> list[str]:
    lines = [f"{run['method']} through the loop: {run['epochs']} epochs of {run['steps_per_epoch']} steps of "
             f"{run['batch']} volumes, {run['volumes']} phantoms, {run['workers']} workers"]  # fmt: skip
    names = {"loss": "loss", "samples_per_second": "samples/s", "data_wait": "data-wait", "memory_gib": "GiB",
             "probe_share": "probe-time", "probe_linear_dice": "linear Dice", "probe_nonlinear_dice": "non-linear Dice",
             "embedding_std": "deviation", "energy_kwh": "kWh"}  # fmt: skip
    header = ("epoch", *names.values())
    cells = [(str(row["epoch"]), *(_cell(row.get(key)) for key in names)) for row in run["rows"]]
    after = run["after_the_first"]
    return [*lines, *_aligned([header, *cells]),
            f"after the first epoch: {after['samples_per_second']:.3g} samples/s, data-wait "
            f"{_percent(after['data_wait'])}; alone a step would give {run['alone']:.3g} samples/s",
            "the same heads on the network before its first step: linear Dice "
            f"{_cell(run['untrained'].get('probe_linear_dice'))}, non-linear "
            f"{_cell(run['untrained'].get('probe_nonlinear_dice'))}"]  # fmt: skip


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

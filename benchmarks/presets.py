"""What each preset asks of a card: peak memory and operations of a training step, hours of the schedule, loader cores.

    python benchmarks/presets.py                    (writes docs/presets.md; no card is needed)
    python benchmarks/presets.py -only sam vox2vec (prints the lines of these presets)

The steps are rehearsed (`nnssl.pretraining.rehearsal`): nothing is timed. What
`benchmarks/gpu.py` measured on the card CARD is beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_setups import PRESETS
from gpu_variants import PACKAGE

from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.rehearsal import rehearse
from nnssl.pretraining.setup import Setup, resolve_sizes

PAGE = Path(__file__).parent.parent / "docs" / "presets.md"
METHODS = {
    "vox2vec": ("vox2vec",),
    "voco": ("voco",),
    "pimpic": ("pimpic",),
    "lapn": ("lapn",),
    "sam": ("sam",),
    "alice_vit": ("alice", "mae"),
    "alice_12gb": ("alice", "mae"),
    "primus": ("mae",),
    "alice_nnformer": ("alice",),
    "alice_swin": ("alice", "mae"),
}
# seconds of one core for a volume of 512x512x300 (benchmarks/results/loader_1_cpu_core.txt)
SECONDS_A_VOLUME = {"vox2vec": 0.0075, "pimpic": 0.0163, "voco": 0.0614, "lapn": 0.137, "sam": 0.0079, "mae": 0.0091,
                    "alice": 0.0219}  # fmt: skip
CARD = Path(__file__).parent / "results" / "gpu_NVIDIA_H100_80GB_HBM3.json"
HEAD = ("preset", "method", "volumes", "GiB", "recomputed", "TFLOP", "steps", "measured", "ms", "hours", "cores")


@dataclass(frozen=True)
class Line:
    """A preset with a method.

    Args:
        preset: its name without "nnsslPlans_".
        method: name of the method.
        volumes: of a step.
        gib, recomputed_gib: peak memory of a step as it is, and with checkpoint_activations=true.
        tflop: operations of a step.
        steps: of the whole schedule.
        measured: seconds and peak memory (GiB) of a step on the card; None: not measured.
    """

    preset: str
    method: str
    volumes: int
    gib: float
    recomputed_gib: float
    tflop: float
    steps: int
    measured: tuple[float, float] | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        rehearsed = (f"`{self.preset}`", self.method, str(self.volumes), f"{self.gib:.1f}",
                     f"{self.recomputed_gib:.1f}", f"{self.tflop:.2f}", f"{self.steps:,}")  # fmt: skip
        if self.measured is None:
            return (*rehearsed, "-", "-", "-", "-")
        seconds, gib = self.measured
        cores = max(1, round(self.volumes / seconds * SECONDS_A_VOLUME[self.method]))
        return (*rehearsed, f"{gib:.1f}", f"{seconds * 1000:.0f}", f"{self.steps * seconds / 3600:.1f}", f"{cores}")


def measured(preset: str, method: str, volumes: int) -> tuple[float, float] | None:
    """Seconds and peak memory (GiB) of a step of the preset on the card, with this number of volumes."""
    for step in json.loads(CARD.read_text())["steps"]:
        if (step["method"], step["variant"], step["batch"]) == (method, PACKAGE, volumes):
            return (step["step"], step["memory"]) if PRESETS[method] == f"nnsslPlans_{preset}" else None
    return None


def line_of(preset: str, method: str) -> Line:
    """Rehearse a step of the preset, as it is and with recomputed activations."""
    plans: dict[str, Any] = json.loads(presets()[f"nnsslPlans_{preset}"].read_text())
    resolved = resolve_configuration(plans, "3d_fullres")
    resolved["normalization_schemes"] = resolved["normalization_schemes"] or ["CTNormalization"]
    config = resolve_sizes(get_method(method).config_class(), resolved, 1)
    nobody = Cases.of([], [])
    setup = Setup(method, config, plans, {}, {}, "3d_fullres", "all", nobody, nobody, Path(), resolved=resolved)
    found = [rehearse(replace(setup, config=replace(config, checkpoint_activations=on))) for on in (None, True)]
    return Line(preset, method, config.volumes, found[0].peak_gib, found[1].peak_gib, found[0].flop / 1e12,
                config.num_epochs * config.steps_per_epoch, measured(preset, method, config.volumes))  # fmt: skip


def table(lines: list[Line]) -> str:
    """The lines in Markdown."""
    rows = [HEAD, ("---",) * len(HEAD), *(line.cells for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Rehearse the presets, and renew the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-only", nargs="+", choices=METHODS, help="print the lines of these presets; write nothing")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    lines = []
    for preset in only or METHODS:
        for method in METHODS[preset]:
            lines.append(line_of(preset, method))
            print(" | ".join(lines[-1].cells), flush=True)
    if only is None:
        before, _, rest = PAGE.read_text().partition("| preset |")
        after = rest.partition("\n\n")[2]
        PAGE.write_text(f"{before}{table(lines)}\n{after}")


if __name__ == "__main__":
    main()

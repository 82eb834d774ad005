"""`nnssl_efficiency`: what the prediction of each case costs in time and memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.flags import (
    EXAMPLE_IMAGES,
    EXAMPLE_MODEL,
    IMAGES_LEFT_OUT,
    LEFT_OUT,
    ONNX_EXTRA,
    add,
    add_shared,
    new_parser,
)
from nnssl.cli.run import entry

if TYPE_CHECKING:
    from nnssl.deployment.efficiency import CaseCost

EPILOG = f"""more examples:
  nnssl_efficiency -m model.onnx -i IMAGES -device cpu -o model.csv

Each case is predicted in a fresh process. `seconds` is all of it, from the start of Python to the written label map
(which is thrown away), and `loading_s` the part until the model was ready. Memory is sampled every 0.1 s: on a GPU the
memory in use on the card above what was in use before (leave the card to this command), on a CPU the resident memory
of the process. MB are 2^20 bytes; `area_mb_s` is the area under the memory-time curve; the last columns are FLARE's
tolerances. These are the columns of the paper's table 6.
{ONNX_EXTRA}
"""
_WIDTHS = (14, 9, 9, 8, 10, 11, 11)  # of the columns after the first


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_efficiency", f"nnssl_efficiency -m {EXAMPLE_MODEL} \\\n    -i {EXAMPLE_IMAGES}", EPILOG,
        "Takes a model folder or an ONNX file; memory is its maximum, and the area under the memory-time curve.",
        IMAGES_LEFT_OUT)
    add(p, "-m", metavar="MODEL", help="model folder of a training, or ONNX file of nnssl_export_onnx")
    add(p, "-i", dest="images")
    add(p, "-o", metavar="FILE", help="CSV file for the table, complete after each case")
    add(p, "-f", nargs="+", dest="folds", help="folds of a model folder; several are an ensemble (default: 0)")
    add_shared(p, "-chk", "-step_size", "-device", "-threads", "--disable_tta")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import measure_efficiency
    from nnssl.deployment.efficiency import COLUMNS

    shown: list[CaseCost] = []

    def show(cost: CaseCost) -> None:
        if not shown:
            print(_line(COLUMNS))
        shown.append(cost)
        print(_line(cost.row), flush=True)

    left_out: dict[str, str] = {}
    measure_efficiency(**vars(arguments), report=show, refuse=left_out.__setitem__)
    return LEFT_OUT if left_out else 0


def _line(row: tuple[str, ...]) -> str:
    return " ".join([f"{row[0]:<24}", *(f"{text:>{width}}" for text, width in zip(row[1:], _WIDTHS, strict=True))])


main = entry(parser, _command)

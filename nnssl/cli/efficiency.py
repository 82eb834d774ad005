"""`nnssl_efficiency`: what the prediction of each case costs in time and memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.run import LEFT_OUT, run

if TYPE_CHECKING:
    from nnssl.deployment.efficiency import CaseCost

EPILOG = """examples:
  nnssl_efficiency -m student.onnx -i IMAGES -device cpu -o student.csv
  nnssl_efficiency -m $nnUNet_results/Dataset017_Organs/nnUNetTrainer__nnUNetPlans__3d_fullres -i IMAGES

Every case is predicted in a fresh process of its own. `seconds` is the whole of it, from the start of Python to the
written label map (which is thrown away), and `loading_s` the part until the model was ready. Memory is sampled every
0.1 s: on a GPU what is in use on the card above what was before (leave the card to this command), with -device cpu the
resident memory of the process. MB are of 2^20 bytes; `area_mb_s` is the area under the memory-time curve; the last
columns are FLARE's tolerances. These are the columns of the paper's table 6.
Exit code 3: done, but images that cannot be used were left out.
Needs the extra: pip install onnx onnxscript onnxruntime psutil
"""
_WIDTHS = (14, 9, 9, 8, 10, 11, 11)  # of the columns after the first


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_efficiency",
        description="Running time, maximum memory and area under the memory-time curve of the prediction of every\n"
        "case, with a model folder or an ONNX file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-m", required=True, metavar="MODEL", dest="model",
                   help="folder of a training, or ONNX file of nnssl_export_onnx")
    p.add_argument("-i", required=True, metavar="FOLDER", dest="images",
                   help="images, named like case_0000.nii.gz")
    p.add_argument("-o", metavar="FILE", dest="output", help="CSV file for the table, complete after every case")
    p.add_argument("-f", nargs="+", metavar="FOLD", dest="folds",
                   help="of a model folder; several are an ensemble (default: 0)")
    p.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", dest="checkpoint",
                   help="name of the checkpoint in a model folder (default: checkpoint_final.pth)")
    p.add_argument("-step_size", type=float, default=0.5, metavar="X",
                   help="of the sliding window, as a fraction of the patch (default: 0.5)")
    p.add_argument("--disable_tta", action="store_true", help="do not mirror: faster, less accurate")
    p.add_argument("-device", default="cuda", choices=("cuda", "cpu"),
                   help="where the network computes, and whose memory is measured (default: cuda)")
    p.add_argument("-threads", type=int, default=0, metavar="N",
                   help="threads of the network (default: 0, which is one a core)")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
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


if __name__ == "__main__":
    main()

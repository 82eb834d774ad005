"""`nnssl_evaluate`: Dice and normalised surface Dice of a folder of predictions."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from nnssl.cli.run import run

if TYPE_CHECKING:
    from nnssl.benchmarking.evaluation_report import Evaluation

EPILOG = """examples:
  nnssl_evaluate labelsTs predictions
  nnssl_evaluate labelsTs predictions -tolerance 2 liver=5 -np 8
  nnssl_evaluate labelsTs predictions -djfile dataset.json -pfile plans.json -o scores

Writes nnssl_evaluation.json and nnssl_evaluation.csv (every case and structure) beside nnU-Net's summary.json. A
structure that is in neither file of a case scores 1, as in the FLARE challenges; with -absent exclude that case does
not count for it, as in nnU-Net's summary. A structure that is in only one of them scores 0.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnUNetv2_evaluate_folder has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_evaluate",
        description="Dice and normalised surface Dice of predicted labels, per case and structure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("references", metavar="GT_FOLDER", help="folder with the true labels")
    p.add_argument("predictions", metavar="PRED_FOLDER", help="folder with the predicted labels, under the same names")
    p.add_argument("-djfile", metavar="FILE", dest="dataset_json",
                   help="dataset.json (default: that of PRED_FOLDER or of the model folder that it lies in)")
    p.add_argument("-pfile", metavar="FILE", dest="plans", help="plans.json (default: as for dataset.json)")
    p.add_argument("-o", metavar="FOLDER", dest="output", help="where the files go (default: PRED_FOLDER)")
    p.add_argument("-tolerance", nargs="+", default=[], metavar="MM",
                   help="of the surfaces in mm: one number for all (default: 2), NAME=MM for single structures")
    p.add_argument("-absent", choices=("flare", "exclude"), default="flare",
                   help="a structure in neither file: 1 (flare, default), or left out of the means (exclude)")
    p.add_argument("-np", type=int, default=1, metavar="N", dest="num_processes", help="processes (default: 1)")
    p.add_argument("--chill", action="store_true", help="leave out references without a prediction")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import evaluate

    evaluation = evaluate(**vars(arguments))
    print("\n".join(_lines(evaluation)))
    print(f"written to {arguments.output or arguments.predictions}")


def _lines(evaluation: Evaluation) -> list[str]:
    summary = evaluation.summary()
    width = max(map(len, [*summary, "structure"]))
    limits = {structure.name: f"{structure.tolerance:g} mm" for structure in evaluation.structures}
    lines = [f"{'structure':{width}}  {'Dice':15}  {'surface Dice':15}  {'tolerance':9}  cases"]
    for name, row in summary.items():
        scores = (_score(row[metric], row[f"{metric}_sd"]) for metric in ("dice", "nsd"))
        lines.append(
            f"{name:{width}}  {'  '.join(f'{s:15}' for s in scores)}  {limits.get(name, ''):9}  {row['cases']}"
        )
    return lines


def _score(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()

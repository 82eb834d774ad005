"""`nnssl_evaluate`: Dice and normalised surface Dice of a folder of predictions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.flags import add, add_shared, new_parser
from nnssl.cli.run import entry

if TYPE_CHECKING:
    from nnssl.benchmarking.evaluation_report import Evaluation

EPILOG = """more examples:
  nnssl_evaluate labelsTs predictions -tolerance 2 liver=5 -np 8
  nnssl_evaluate labelsTs predictions -djfile dataset.json -pfile plans.json -o scores

Writes nnssl_evaluation.json and nnssl_evaluation.csv (every case and structure) beside nnU-Net's summary.json. A
structure that is in neither file of a case scores 1, as in the FLARE challenges; with -absent exclude the case does
not count for it, as in nnU-Net's summary. A structure that is in only one of the files scores 0.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; those of nnUNetv2_evaluate_folder are here too."""
    # fmt: off
    p = new_parser("nnssl_evaluate", "nnssl_evaluate $nnUNet_raw/Dataset017_Organs/labelsTs predictions", EPILOG,
                   "The scores are given for each case and structure; the surface Dice is normalised.")
    add(p, "references", metavar="GT_FOLDER", help="folder of the true labels")
    add(p, "predictions", metavar="PRED_FOLDER", help="folder of the predicted labels, under the same names")
    add(p, "-o", help="folder to write to (default: PRED_FOLDER)")
    add(p, "-djfile", metavar="FILE", dest="dataset_json",
        help="dataset.json (default: that of PRED_FOLDER or of the model folder around it)")
    add(p, "-pfile", metavar="FILE", dest="plans",
        help="plans.json (default: that of PRED_FOLDER or of the model folder around it)")
    add_shared(p, "-tolerance", "-absent", "-np")
    add(p, "--chill", action="store_true", help="leave out references without a prediction")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import evaluate

    evaluation = evaluate(**vars(arguments))
    print("\n".join(_lines(evaluation)))
    print(f"written to {arguments.output or arguments.predictions}")


def _lines(evaluation: Evaluation) -> list[str]:
    from nnssl.benchmarking.tables import score_text

    summary = evaluation.summary()
    width = max(map(len, [*summary, "structure"]))
    limits = {structure.name: f"{structure.tolerance:g} mm" for structure in evaluation.structures}
    lines = [f"{'structure':{width}}  {'Dice':15}  {'surface Dice':15}  {'tolerance':9}  cases"]
    for name, row in summary.items():
        scores = (score_text(row[metric], row[f"{metric}_sd"]) for metric in ("dice", "nsd"))
        lines.append(
            f"{name:{width}}  {'  '.join(f'{s:15}' for s in scores)}  {limits.get(name, ''):9}  {row['cases']}"
        )
    return lines


main = entry(parser, _command)

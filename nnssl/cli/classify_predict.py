"""`nnssl_classify_predict`: labels of new images."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import IMAGES_LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import LEFT_OUT, entry

EPILOG = f"""examples:
  nnssl_classify_predict -i imagesTs -o covid.csv -m MODEL
  nnssl_classify_predict -i imagesTs -o covid.csv -m MODEL -heat maps      maps/CASE.nii.gz and maps/CASE.png

MODEL is the folder that nnssl_classify prints, of frozen features or fine-tuned; the folds of a fine-tuned one are
averaged. A map shows each place's part of the predicted score (Grad-CAM). {IMAGES_LEFT_OUT}
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_classify_predict", "Predict the label of each image by a model of nnssl_classify.", EPILOG)
    add(p, "-i", metavar="IMAGES", dest="images",
        help="dataset (number or name), folder of images named like case_0000.nii.gz, or one image")
    add(p, "-o", required=True, metavar="OUT.csv", dest="output", help="table to write")
    add(p, "-m", metavar="MODEL", help="folder of nnssl_classify, of one of its folds, or a model.pth")
    add(p, "-heat", metavar="FOLDER", help="write a map of where the evidence is, as NIfTI and PNG, for each case")
    add_shared(p, "-device")
    add(p, "--overwrite", action="store_true", help="replace the table")
    add_shared(p, "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import classify_predict

    return LEFT_OUT if classify_predict(**vars(arguments)).left_out else 0


main = entry(parser, _command)

if __name__ == "__main__":
    main()

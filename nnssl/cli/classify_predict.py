"""`nnssl_classify_predict`: labels of new images."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import IMAGES, IMAGES_LEFT_OUT, LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import entry

_MODEL = "$nnUNet_results/Dataset600_Covid/classification_covid__nnssl_vox2vec__frozen__nnUNetPlans__3d_fullres"
EPILOG = """more examples:
  nnssl_classify_predict -i IMAGES -m MODEL -o covid.csv -heat maps      maps/CASE.nii.gz and maps/CASE.png

MODEL is the folder that nnssl_classify prints, of frozen features or fine-tuned; the folds of a fine-tuned one are
averaged. A map shows each place's part of the predicted score (Grad-CAM).
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_classify_predict", f"nnssl_classify_predict -m {_MODEL} \\\n    -i 600 -o covid.csv",
                   EPILOG, exits=IMAGES_LEFT_OUT)
    add(p, "-m", metavar="MODEL", help="folder of nnssl_classify, of one of its folds, or a model.pth")
    add(p, "-i", dest="images", help=IMAGES)
    add(p, "-o", required=True, metavar="FILE", help="CSV file to write")
    add(p, "-heat", metavar="FOLDER", help="write a map of where the evidence is, as NIfTI and PNG, for each case")
    add_shared(p, "-device")
    add_shared(p, "--overwrite", "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import classify_predict

    return LEFT_OUT if classify_predict(**vars(arguments)).left_out else 0


main = entry(parser, _command)

if __name__ == "__main__":
    main()

"""`nnssl_embed`: vectors or dense maps of images by a pretrained backbone."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXAMPLE_RUN, IMAGES, IMAGES_LEFT_OUT, LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_embed -m RUN -i 17 -o vectors -format csv                     and vectors/vectors.csv
  nnssl_embed -m RUN -i imagesTs -o maps -what dense -level 1         maps of one level: maps/<case>.b2nd
  nnssl_embed -m RUN -i imagesTs/case_3 -o maps -what dense -components 3 -format nifti      for a viewer

RUN is a pretraining of any method. Images are preprocessed with its plans. Cases that the folder has already are
kept: the same command goes on where it was stopped.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_embed", f"nnssl_embed -m {EXAMPLE_RUN} -i 17 -o vectors", EPILOG, exits=IMAGES_LEFT_OUT)
    add_shared(p, "-m")
    add(p, "-i", dest="images", help=IMAGES)
    add(p, "-o", required=True)
    add_shared(p, "-level")
    add(p, "-what", default="case", choices=("case", "dense"),
        help="case: one vector per case, the mean over the body; dense: the features of every cell, one file per case")
    add(p, "-format", dest="file_format", choices=("npz", "csv", "blosc2", "nifti"),
        help="npz (default) or csv for vectors; blosc2 (default) or nifti for dense maps")
    add(p, "-components", type=int, metavar="K",
        help="reduce dense maps to K principal components, fitted on body voxels of all cases")
    add(p, "-pca", metavar="FILE", help="pca.npz of another call: use its components")
    add_shared(p, "-device", "--overwrite", "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import embed
    from nnssl.data.next_lines import Way, rendered

    made = embed(**vars(arguments))
    out = f" ({len(made.left_out)} left out)" if made.left_out else ""
    print(f"{len(made.cases)} cases in {made.folder}{out}")
    if made.next:
        print(rendered([Way(made.next)]))
    return LEFT_OUT if made.left_out else 0


main = entry(parser, _command)

"""`nnssl_embed`: vectors or dense maps of images by a pretrained backbone."""

from __future__ import annotations

import argparse

from nnssl.cli.run import ALLOW_HELP, LEFT_OUT, run

EPILOG = """examples:
  nnssl_embed -m RUN -i 17 -o OUT                                     one vector a case: OUT/vectors.npz
  nnssl_embed -m RUN -i 17 -o OUT -format csv                         and OUT/vectors.csv
  nnssl_embed -m RUN -i imagesTs -o OUT -what dense -level 1          maps of one level: OUT/<case>.b2nd
  nnssl_embed -m RUN -i imagesTs/case_3 -o OUT -what dense -components 3 -format nifti      for a viewer

RUN is the folder of a pretraining of any method (or its checkpoint_final.pth). Images are preprocessed as its plans
say. Level 0 is the finest one; without -level all are used. Cases that OUT has already are kept: the same command goes
on where it was stopped. Exit code 3: done, but images that cannot be used were left out; 75: stopped by SIGTERM or
SIGUSR1.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_embed",
        description="Write what a pretrained backbone says of images: a vector a case, or a dense map.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-m", required=True, metavar="RUN", dest="model", help="run folder or checkpoint")
    p.add_argument("-i", required=True, metavar="IMAGES", dest="images",
                   help="dataset (number or name), folder of images named like case_0000.nii.gz, or one image")
    p.add_argument("-o", required=True, metavar="OUT", dest="output", help="folder to write to")
    p.add_argument("-what", default="case", choices=("case", "dense"),
                   help="case: mean over the body, a vector a case (default); dense: features of every cell, a file a "
                        "case")
    p.add_argument("-format", dest="file_format", choices=("npz", "csv", "blosc2", "nifti"),
                   help="npz (default) or csv for vectors; blosc2 (default) or nifti for dense maps")
    p.add_argument("-components", type=int, metavar="K",
                   help="reduce dense maps to K principal components, fitted on body voxels of all cases")
    p.add_argument("-level", type=int, metavar="L", help="one level of the feature pyramid (default: all of them)")
    p.add_argument("-pca", metavar="FILE", help="pca.npz of another call: use its components")
    p.add_argument("-device", default="cuda", choices=("cuda", "cpu"), help="cuda (default) or cpu")
    p.add_argument("--overwrite", action="store_true", help="make everything in OUT again")
    p.add_argument("--allow_other_intensities", action="store_true", help=ALLOW_HELP)
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import embed
    from nnssl.data.next_lines import Way, rendered

    made = embed(**vars(arguments))
    out = f" ({len(made.left_out)} left out)" if made.left_out else ""
    print(f"{len(made.cases)} cases in {made.folder}{out}")
    if made.next:
        print(rendered([Way(made.next)]))
    return LEFT_OUT if made.left_out else 0


if __name__ == "__main__":
    main()

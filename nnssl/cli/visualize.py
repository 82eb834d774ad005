"""`nnssl_visualize`: pictures of what a pretraining has learned, and their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnssl.cli.run import ALLOW_HELP, run

_MORE = {"similarity": (".nii.gz",), "pca": (".nii.gz",), "tsne": (".csv",)}  # files of a kind
EPILOG = """examples:
  nnssl_visualize similarity -m RUN -i imagesTr/case_1_0000.nii.gz -p 96 78 86 -o similarity.png
  nnssl_visualize similarity -m RUN -i imagesTr/case_1 -k imagesTr/case_2 -p 96 78 86 -o similarity.png
  nnssl_visualize pca -m RUN -i imagesTr/case_1 -o pca.png
  nnssl_visualize tsne -m RUN -i imagesTr/case_1 imagesTr/case_2 -o tsne.png
  nnssl_visualize matches -m RUN -i imagesTr/case_1 -k imagesTr/case_2 imagesTr/case_3 -o matches.png
  nnssl_visualize views -m RUN -i case_1 case_2 -o views.png
  nnssl_visualize reconstruction -m RUN -o reconstruction.png

RUN is the folder of a pretraining of any method (or its checkpoint_final.pth). An image is the file of its first
channel, one file with all channels, or the case without _0000.nii.gz. Each picture's numbers are in a .json of the same
name beside it. Axes are in mm of the world, LPS as in SimpleITK and DICOM, seen as radiologists do: the patient's left
is on the right, the front and the head are up.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        "nnssl_visualize",
        description="Pictures of what a pretraining has learned, and their numbers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    # fmt: off
    similarity = _kind(kinds, "similarity", "how alike all places are to one, as a heat map and against the distance")
    _image(similarity, "raw image that the place is in")
    similarity.add_argument("-k", metavar="IMAGE", dest="key", help="raw image that is searched (default: the same)")
    _point(similarity, "the place in mm, or in voxels with --voxel (default: drawn from the body)")
    _features(similarity)
    pca = _kind(kinds, "pca", "the first three principal components as colours; also as NIfTI")
    _image(pca, "raw image")
    _point(pca, "point that the planes go through (default: the middle of the body)")
    _features(pca)
    tsne = _kind(kinds, "tsne", "features of labelled voxels in two dimensions, by t-SNE")
    tsne.add_argument("-i", required=True, nargs="+", metavar="IMAGE", dest="images", help="raw images with labels")
    _labels(tsne)
    tsne.add_argument("--per_label", type=int, default=200, metavar="N", help="voxels of each label (default: 200)")
    tsne.add_argument("--perplexity", type=float, default=30.0, metavar="P", help="of t-SNE (default: 30)")
    _features(tsne)
    matches = _kind(kinds, "matches", "landmarks of one image, found in other ones")
    _image(matches, "raw image with the landmarks")
    matches.add_argument("-k", required=True, nargs="+", metavar="IMAGE", dest="keys",
                         help="raw images that are searched")
    matches.add_argument("-p", action="append", default=[], metavar=("X", "Y", "Z"), dest="points", nargs=3,
                         type=float, help="a landmark in mm, or in voxels with --voxel; may be given several times "
                                          "(default: centres of mass of the labels)")
    _units(matches)
    _labels(matches)
    _features(matches)
    for name, said in (("views", "the views that the method makes of cases"),
                       ("reconstruction", "what the network makes of masked crops of cases")):
        views = _kind(kinds, name, said)
        views.add_argument("-i", nargs="+", default=[], metavar="CASE", dest="cases",
                           help="preprocessed cases by name (default: the first ones of the run, held-out ones before)")
        views.add_argument("--step", type=int, default=0, metavar="N", help="step whose crops are drawn (default: 0)")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> None:
    arguments = vars(parser().parse_args(argv))
    # Only now: --help answers without waiting for torch and nnU-Net.
    import nnssl

    kind = arguments.pop("kind")
    visualize: Callable[..., Any] = getattr(nnssl, f"visualize_{kind}")
    visualize(**arguments)
    for ending in (".png", ".json", *_MORE.get(kind, ())):
        print(f"written: {Path(arguments['output']).with_suffix(ending)}")


def _kind(kinds: Any, name: str, description: str) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = kinds.add_parser(name, help=description, description=f"Draw {description}.")
    p.add_argument("-m", required=True, metavar="RUN", dest="model", help="run folder or checkpoint of a pretraining")
    p.add_argument("-o", required=True, metavar="PNG", dest="output", help="the picture; numbers go beside it")
    p.add_argument("-device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")
    p.add_argument("--allow_other_intensities", action="store_true", help=ALLOW_HELP)
    return p


def _image(p: argparse.ArgumentParser, said: str) -> None:
    p.add_argument("-i", required=True, metavar="IMAGE", dest="image", help=said)


def _point(p: argparse.ArgumentParser, said: str) -> None:
    p.add_argument("-p", metavar=("X", "Y", "Z"), dest="point", nargs=3, type=float, help=said)
    _units(p)


def _units(p: argparse.ArgumentParser) -> None:
    p.add_argument("--voxel", action="store_true", help="points are in voxels of the file; the first one is 0 0 0")
    p.add_argument("--ras", action="store_true", help="millimetres of given points are RAS instead of LPS")


def _labels(p: argparse.ArgumentParser) -> None:
    p.add_argument("-l", metavar="FOLDER", dest="labels", help="folder of the label files (default: labelsTr beside "
                                                               "imagesTr)")  # fmt: skip
    p.add_argument("-labels", nargs="+", default=[], metavar="NAME", dest="chosen",
                   help="names or values of the labels that are used (default: all)")  # fmt: skip


def _features(p: argparse.ArgumentParser) -> None:
    p.add_argument("-level", type=int, metavar="N", help="level of the feature pyramid, 0 for the finest (default: "
                                                         "all, or the encodings of lapn and sam)")  # fmt: skip
    p.add_argument("-seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")


if __name__ == "__main__":
    main()

"""`nnssl_visualize`: pictures of what a pretraining has learned, and their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnssl.cli.flags import EXAMPLE_RUN, add, add_point, add_shared, new_parser
from nnssl.cli.run import entry

_MORE = {"similarity": (".nii.gz",), "pca": (".nii.gz",), "tsne": (".csv",)}  # files of a kind
_IMAGE = "$nnUNet_raw/Dataset017_Organs/imagesTr/case_"
_EXAMPLES = {"similarity": f"-i {_IMAGE}1", "pca": f"-i {_IMAGE}1", "tsne": f"-i {_IMAGE}1",
             "matches": f"-i {_IMAGE}1 -k {_IMAGE}2", "views": "", "reconstruction": ""}  # fmt: skip
EPILOG = """more examples:
  nnssl_visualize similarity -m RUN -i imagesTr/case_1_0000.nii.gz -point 96 78 86 -o similarity.png
  nnssl_visualize similarity -m RUN -i imagesTr/case_1 -k imagesTr/case_2 -point 96 78 86 -o similarity.png
  nnssl_visualize pca -m RUN -i imagesTr/case_1 -o pca.png
  nnssl_visualize tsne -m RUN -i imagesTr/case_1 imagesTr/case_2 -o tsne.png
  nnssl_visualize matches -m RUN -i imagesTr/case_1 -k imagesTr/case_2 imagesTr/case_3 -o matches.png
  nnssl_visualize views -m RUN -i case_1 case_2 -o views.png
  nnssl_visualize reconstruction -m RUN -o reconstruction.png

RUN is a pretraining of any method. An image is the file of its first channel, one file with all channels, or the case
without _0000.nii.gz. The numbers of each picture are in a .json of the same name beside it. Axes are in mm of the
world, LPS as in SimpleITK and DICOM, seen as radiologists do: the patient's left is on the right, the front and the
head are up.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = new_parser(
        "nnssl_visualize", _example("similarity"), EPILOG, "KIND is a kind of picture; each has a --help of its own."
    )
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    # fmt: off
    similarity = _kind(kinds, "similarity", "how similar all places are to one, as a heat map and against the distance")
    add(similarity, "-i", metavar="IMAGE", dest="image", help="raw image with the place")
    add(similarity, "-k", dest="key", help="raw image to search (default: the same)")
    add_point(similarity, "the place in mm, or in voxels with --voxel (default: drawn from the body)")
    pca = _kind(kinds, "pca", "the first three principal components as colours, also as NIfTI")
    add(pca, "-i", metavar="IMAGE", dest="image", help="raw image")
    add_point(pca, "point that the planes go through (default: the middle of the body)")
    tsne = _kind(kinds, "tsne", "features of labelled voxels in two dimensions, by t-SNE")
    add(tsne, "-i", nargs="+", metavar="IMAGE", dest="images", help="raw images with labels")
    _labels(tsne)
    add(tsne, "-per_label", "--per_label", type=int, default=200, metavar="N", help="voxels of each label")
    add(tsne, "-perplexity", "--perplexity", type=float, default=30.0, metavar="P", help="perplexity of t-SNE")
    matches = _kind(kinds, "matches", "landmarks of one image, found in other ones")
    add(matches, "-i", metavar="IMAGE", dest="image", help="raw image with the landmarks")
    add(matches, "-k", required=True, nargs="+", dest="keys", help="raw images to search")
    add_point(matches, "a landmark in mm, or in voxels with --voxel; can be given several times (default: centres of "
                       "mass of the labels)", action="append", default=[], dest="points")
    _labels(matches)
    for p_of_images in (similarity, pca, tsne, matches):
        _output(p_of_images, "-level", "-seed")
    for name, said in (("views", "the views that the method makes of cases"),
                       ("reconstruction", "what the network makes of masked crops of cases")):
        views = _kind(kinds, name, said)
        add(views, "-i", required=False, nargs="+", default=[], metavar="CASE", dest="cases",
            help="preprocessed cases by name (default: the first ones of the run, held-out ones before others)")
        add(views, "-step", "--step", type=int, default=0, metavar="N", help="step whose crops are drawn")
        _output(views)
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    import nnssl

    given = vars(arguments)
    kind = given.pop("kind")
    visualize: Callable[..., Any] = getattr(nnssl, f"visualize_{kind}")
    visualize(**given)
    for ending in (".png", ".json", *_MORE.get(kind, ())):
        print(f"written: {Path(arguments.output).with_suffix(ending)}")


def _kind(kinds: Any, name: str, description: str) -> argparse.ArgumentParser:
    p: argparse.ArgumentParser = kinds.add_parser(name, help=description, example=_example(name),
                                                  about=f"Draw {description}.")  # fmt: skip
    add_shared(p, "-m")
    return p


def _example(kind: str) -> str:
    run = EXAMPLE_RUN.replace("vox2vec", "mae") if kind == "reconstruction" else EXAMPLE_RUN
    images = f" \\\n    {_EXAMPLES[kind]}" if _EXAMPLES[kind] else ""
    return f"nnssl_visualize {kind} -m {run}{images} -o {kind}.png"


def _output(p: argparse.ArgumentParser, *names: str) -> None:
    """Add what all kinds end with, and shared flags before."""
    add(p, "-o", required=True, metavar="FILE", help="picture to write, as PNG; its numbers go beside it")
    add_shared(p, *names, "-device", "--allow_other_intensities")


def _labels(p: argparse.ArgumentParser) -> None:
    add(p, "-l", metavar="FOLDER", dest="labels", help="folder of the label files (default: labelsTr beside imagesTr)")
    add(p, "-labels", nargs="+", default=[], metavar="NAME", dest="chosen",
        help="names or values of the labels to use (default: all)")  # fmt: skip


main = entry(parser, _command)

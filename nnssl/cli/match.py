"""`nnssl_match`: a point of one image, found in another one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.flags import add, add_point, add_shared, new_parser
from nnssl.cli.run import entry

if TYPE_CHECKING:
    from nnssl.analysis.match import Place

EPILOG = """examples:
  nnssl_match -m RUN -q imagesTr/case_1_0000.nii.gz -k imagesTr/case_2_0000.nii.gz -p 12.5 -30 104 -o match.png
  nnssl_match -m RUN -q imagesTr/case_1 -k imagesTr/case_2 -p 120 88 40 --voxel

RUN is a pretraining with sam or lapn. An image is the file of its first channel, one file with all channels, or the
case without _0000.nii.gz; it is preprocessed with the plans of RUN. Millimetres are LPS, as in SimpleITK and DICOM;
with --ras RAS, as in NIfTI viewers. The line "back" says how far from the point the match leads if it is searched in
the query image: a short way for anatomy that both images show.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_match",
                   "Find a point of one image in another one, by the encodings of a pretraining.", EPILOG)
    add_shared(p, "-m")
    add(p, "-q", required=True, metavar="IMAGE", dest="query", help="raw image with the point")
    add(p, "-k", required=True, metavar="IMAGE", dest="key", help="raw image to search")
    add_point(p, "the point in mm, or in voxels with --voxel", required=True)
    add(p, "-o", metavar="PNG", dest="output", help="picture of the point, the match and the similarities")
    add_shared(p, "-device", "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import match
    from nnssl.data.next_lines import Way, command, device_flag, rendered

    found = match(**vars(arguments))
    cell = " x ".join(f"{size:.1f}" for size in found.cell_mm[::-1])
    print(f"query  {_line(found.query)}")
    print(f"match  {_line(found.key)}, similarity {found.similarity:.3f}, cells of {cell} mm")
    print(f"back   {found.back_mm:.1f} mm from the point")
    if arguments.output:
        print(f"drawn  {arguments.output}")
    flags = [f"--{name}" for name in ("voxel", "ras", "allow_other_intensities") if getattr(arguments, name)]
    line = command("nnssl_visualize", "matches", "-m", arguments.model, "-i", arguments.query, "-k", arguments.key,
                   "-p", *(f"{value:.10g}" for value in arguments.point), "-o", "matches.png", *flags,
                   *device_flag(arguments.device, ours=True))  # fmt: skip
    print(rendered([Way((line,))]))


def _line(place: Place) -> str:
    world, voxel = (" ".join(f"{v:.2f}" for v in values) for values in (place.world, place.voxel))
    return f"{place.name}: {world} mm, voxel {voxel}"


main = entry(parser, _command)

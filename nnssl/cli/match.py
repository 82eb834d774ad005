"""`nnssl_match`: a point of one image, found in another one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.flags import EXAMPLE_RUN, add, add_point, add_shared, new_parser
from nnssl.cli.run import entry

if TYPE_CHECKING:
    from nnssl.analysis.match import Place

EPILOG = """more examples:
  nnssl_match -m RUN -i imagesTr/case_1_0000.nii.gz -k imagesTr/case_2_0000.nii.gz -point 12.5 -30 104
  nnssl_match -m RUN -i imagesTr/case_1 -k imagesTr/case_2 -point 120 88 40 --voxel

RUN is a pretraining with sam or lapn. An image is the file of its first channel, one file with all channels, or the
case without _0000.nii.gz; it is preprocessed with the plans of RUN. Millimetres are LPS, as in SimpleITK and DICOM;
with --ras RAS, as in NIfTI viewers. The line "back" says how far from the point the match leads if it is searched in
the query image: a short way for anatomy that both images show.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_match",
        f"nnssl_match -m {EXAMPLE_RUN.replace('vox2vec', 'sam')} \\\n"
        "    -i $nnUNet_raw/Dataset017_Organs/imagesTr/case_1 -k $nnUNet_raw/Dataset017_Organs/imagesTr/case_2 \\\n"
        "    -point 12.5 -30 104 -o match.png", EPILOG,
        "It compares the encodings of a pretraining with sam or lapn.")
    add_shared(p, "-m")
    add(p, "-i", "-q", metavar="IMAGE", dest="query", help="raw image with the point")
    add(p, "-k", required=True, dest="key")
    add_point(p, "the point in mm, or in voxels with --voxel", required=True)
    add(p, "-o", metavar="FILE", help="picture of the point, the match and the similarities, as PNG")
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
                   "-point", *(f"{value:.10g}" for value in arguments.point), "-o", "matches.png", *flags,
                   *device_flag(arguments.device, ours=True))  # fmt: skip
    print(rendered([Way((line,))]))


def _line(place: Place) -> str:
    world, voxel = (" ".join(f"{v:.2f}" for v in values) for values in (place.world, place.voxel))
    return f"{place.name}: {world} mm, voxel {voxel}"


main = entry(parser, _command)

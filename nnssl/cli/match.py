"""`nnssl_match`: a point of one image, found in another one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.run import ALLOW_HELP, run

if TYPE_CHECKING:
    from nnssl.analysis.match import Place

EPILOG = """examples:
  nnssl_match -m RUN -q imagesTr/case_1_0000.nii.gz -k imagesTr/case_2_0000.nii.gz -p 12.5 -30 104 -o match.png
  nnssl_match -m RUN -q imagesTr/case_1 -k imagesTr/case_2 -p 120 88 40 --voxel

RUN is the folder of a pretraining with -m sam or -m lapn (or its checkpoint_final.pth). An image is the file of its
first channel, one file with all channels, or the case without _0000.nii.gz; it is preprocessed as the pretraining's
plans say. Millimetres are LPS, as in SimpleITK and DICOM; with --ras RAS, as in NIfTI viewers. The line "back" says how
far from the point the match lands if it is searched in the query image: not far for anatomy that both images show.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_match",
        description="Find a point of one image in another one, by the encodings of a pretraining.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-m", required=True, metavar="RUN", dest="model", help="run folder or checkpoint of sam or lapn")
    p.add_argument("-q", required=True, metavar="IMAGE", dest="query", help="raw image that the point is in")
    p.add_argument("-k", required=True, metavar="IMAGE", dest="key", help="raw image that is searched")
    p.add_argument("-p", required=True, metavar=("X", "Y", "Z"), dest="point", nargs=3, type=float,
                   help="the point in mm, or in voxels with --voxel")
    p.add_argument("-o", metavar="PNG", dest="output", help="picture of the point, the match and the similarities")
    p.add_argument("--voxel", action="store_true", help="the point is in voxels of the file; the first one is 0 0 0")
    p.add_argument("--ras", action="store_true", help="millimetres are RAS instead of LPS, also those printed")
    p.add_argument("-device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")
    p.add_argument("--allow_other_intensities", action="store_true", help=ALLOW_HELP)
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
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
                   *device_flag(arguments.device, default="cpu"))  # fmt: skip
    print(rendered([Way((line,))]))


def _line(place: Place) -> str:
    world, voxel = (" ".join(f"{v:.2f}" for v in values) for values in (place.world, place.voxel))
    return f"{place.name}: {world} mm, voxel {voxel}"


if __name__ == "__main__":
    main()

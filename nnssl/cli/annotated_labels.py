"""`nnssl_annotated_labels`: which labels are annotated in which case."""

from __future__ import annotations

import argparse

from nnssl.cli.run import run

EPILOG = """examples:
  nnssl_annotated_labels propose -d 17           show what the label maps suggest
  nnssl_annotated_labels propose -d 17 --write   and put it into dataset.json, to be looked at
  nnssl_annotated_labels check -d 17 --write     after editing the list: check it, and let training see it
  nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_PartialLabels

dataset.json: "annotated_labels": {"case_1": ["liver", "kidney"], "case_2": []}
A case that is not listed has all labels annotated, an empty list is a case without annotation.
Exit code: 0 all is well, 1 a mistake (said in one sentence), or voxels that contradict the list.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_annotated_labels",
        description="Make or check the list of what is annotated in each case, for nnUNetTrainer_PartialLabels.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("action", choices=["propose", "check"],
                   help="propose: list the labels that occur in each label map; check: find unknown labels and cases, "
                        "and voxels of a label that the list says is not annotated there")
    p.add_argument("-d", required=True, metavar="ID", dest="dataset_id", help="dataset, number or name")
    p.add_argument("--write", action="store_true",
                   help="propose: into dataset.json of nnUNet_raw and nnUNet_preprocessed; check: from nnUNet_raw to "
                        "nnUNet_preprocessed, which training reads")
    p.add_argument("-np", type=int, metavar="N", dest="num_processes",
                   help="processes; default: nnU-Net's (8), at most one a core")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = vars(parser().parse_args(argv))
    # Only now: --help answers without waiting for numpy and nnU-Net.
    from nnssl import check_annotated_labels, propose_annotated_labels

    if arguments.pop("action") == "propose":
        propose_annotated_labels(**arguments)
        return 0
    return 1 if check_annotated_labels(**arguments) else 0


if __name__ == "__main__":
    main()

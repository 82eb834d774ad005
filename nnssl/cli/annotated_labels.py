"""`nnssl_annotated_labels`: which labels are annotated in which case."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_annotated_labels propose -d 17 --write   and write it to dataset.json, for you to look at
  nnssl_annotated_labels check -d 17 --write     after editing the list: check it, and let training see it
  nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_PartialLabels

dataset.json: "annotated_labels": {"case_1": ["liver", "kidney"], "case_2": []}
A case that is not listed has all labels annotated, an empty list is a case without annotation.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_annotated_labels", "nnssl_annotated_labels propose -d 17", EPILOG,
        "The list is for nnUNetTrainer_PartialLabels; look at what is proposed before you train.",
        {1: "an error, or voxels that contradict the list"})
    add(p, "action", choices=["propose", "check"],
        help="propose: list the labels that occur in each label map; check: find unknown labels and cases, and voxels "
             "of a label that the list says is not annotated there")
    add(p, "-d", dest="dataset_id")
    add_shared(p, "-np")
    add(p, "--write", action="store_true",
        help="propose: write the list to dataset.json in nnUNet_raw and nnUNet_preprocessed; check: copy it from "
             "nnUNet_raw to nnUNet_preprocessed, which training reads")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import check_annotated_labels, propose_annotated_labels

    given = vars(arguments)
    if given.pop("action") == "propose":
        propose_annotated_labels(**given)
        return 0
    return 1 if check_annotated_labels(**given) else 0


main = entry(parser, _command)

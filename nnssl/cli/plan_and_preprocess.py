"""`nnssl_plan_and_preprocess`: raw volumes, with or without labels, to nnU-Net's preprocessed folder."""

from __future__ import annotations

import argparse
import logging

from nnssl.cli.flags import LEFT_OUT, VOLUMES_LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_plan_and_preprocess -d 500 -p nnsslPlans_tiny             a preset
  nnssl_plan_and_preprocess -d 500 501 -pl nnUNetPlannerResEncL   a stock planner for 500, and its plans for 501

Prints the nnssl_pretrain line to type next.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_plan_and_preprocess", "nnssl_plan_and_preprocess -d 500", EPILOG,
        "What is done already is kept. nnssl_pretrain does the same where it is missing.", VOLUMES_LEFT_OUT)
    add(p, "-d", nargs="+", dest="dataset_ids",
        help="datasets, by number or name; the first one is planned, the others get its plans")
    add_shared(p, "-c")
    which = p.add_mutually_exclusive_group()
    add(which, "-p", default=None, dest="preset",
        help="name of the plans, or a preset such as nnsslPlans_vox2vec (default: nnUNetPlans)")
    add(which, "-pl", metavar="PLANNER", dest="planner", help="nnU-Net's planner (default: ExperimentPlanner)")
    add(p, "-gpu_memory_target", type=float, metavar="GB", help="memory for the planner (default: the planner's)")
    add(p, "-overwrite_target_spacing", type=float, nargs=3, metavar="MM", help="spacing for the planner, as z y x")
    add_shared(p, "-overwrite_plans_name", "-np", "-num_parts", "-part_id")
    add(p, "--clean", action="store_true", help="read all volumes again for the fingerprint")
    add(p, "--no_pp", action="store_false", dest="preprocess", help="plan only")
    add(p, "--reorient", action="store_true",
        help="NIfTI only: nnU-Net turns all images to RAS as it reads them (NibabelIOWithReorient), and predictions "
             "back to the orientation of each file")
    add(p, "--strict", action="store_true",
        help="refuse if a volume cannot be used, or is placed elsewhere than its label or another channel")
    add_shared(p, "--overwrite_plans", "--overwrite_volumes", "--allow_other_intensities")
    add(p, "--no_pbar", "--disable_progress_bar", action="store_false", dest="show_progress")
    add_shared(p, "--verbose")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl.data.next_lines import after_planning, rendered
    from nnssl.data.plan_and_preprocess import plan_and_preprocess

    given = vars(arguments)
    if given.pop("verbose"):
        logging.getLogger("nnssl").setLevel(logging.DEBUG)
    results = plan_and_preprocess(**given)
    flags = ["--allow_other_intensities"] if arguments.allow_other_intensities else []
    print(rendered(after_planning(results, arguments.num_parts, *flags)))
    return LEFT_OUT if any(result.left_out for result in results) else 0


main = entry(parser, _command)

if __name__ == "__main__":
    main()

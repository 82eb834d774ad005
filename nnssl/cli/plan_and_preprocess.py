"""`nnssl_plan_and_preprocess`: raw volumes, with or without labels, to nnU-Net's preprocessed folder."""

from __future__ import annotations

import argparse
import logging

from nnssl.cli.run import LEFT_OUT, run

_EPILOG = """Exit codes: 0 all volumes are ready, 1 nothing was done or an error ended it, 3 some volumes were left out
(named at the end, and in <plans>_left_out.json beside the plans), 75 stopped by SIGTERM or SIGUSR1: what is done is
kept, run the same line again."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser("nnssl_plan_and_preprocess", description=__doc__, epilog=_EPILOG)
    p.add_argument("-d", nargs="+", required=True, metavar="ID",
                   help="datasets (number or name); the first one is planned, the others get its plans")
    which = p.add_mutually_exclusive_group()
    which.add_argument("-p", metavar="PLANS", help="preset (nnsslPlans_vox2vec, nnsslPlans_tiny), or name of plans")
    which.add_argument("-pl", metavar="PLANNER", help="nnU-Net's planner; default: ExperimentPlanner")
    p.add_argument("-gpu_memory_target", type=float, metavar="GB", help="for the planner; default: its own")
    p.add_argument("-overwrite_target_spacing", type=float, nargs=3, metavar="MM", help="for the planner, as z y x")
    p.add_argument("-overwrite_plans_name", metavar="NAME", help="another name for the plans")
    p.add_argument("--overwrite_plans", action="store_true",
                   help="replace plans of that name, and volumes that do not fit the new ones")
    p.add_argument("--overwrite_volumes", action="store_true", help="prepare all volumes anew")
    p.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: 3d_fullres")
    p.add_argument("-np", type=int, metavar="N", help="processes; default: nnU-Net's (8), at most one a core")
    p.add_argument("-num_parts", type=int, default=1, metavar="N", help="share the volumes among N jobs")
    p.add_argument("-part_id", type=int, default=0, metavar="K", help="which of the jobs this is, from 0")
    p.add_argument("--reorient", action="store_true",
                   help="NIfTI only: nnU-Net turns all images to RAS as it reads them (NibabelIOWithReorient), and "
                        "predictions back to the orientation of each file")
    p.add_argument("--allow_other_intensities", action="store_true",
                   help="give plans to datasets of another modality than the first one's, such as CT after MR")
    p.add_argument("--no_pp", action="store_true", help="plan only")
    p.add_argument("--clean", action="store_true", help="read all volumes anew for the fingerprint")
    p.add_argument("--strict", action="store_true",
                   help="refuse if a volume cannot be used, or lies elsewhere than its label or another channel")
    p.add_argument("--no_pbar", action="store_true", help="no progress bar (there is none without a terminal)")
    p.add_argument("--verbose", action="store_true", help="also what nnU-Net's functions print")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl.data.next_lines import after_planning, rendered
    from nnssl.data.plan_and_preprocess import plan_and_preprocess

    if args.verbose:
        logging.getLogger("nnssl").setLevel(logging.DEBUG)
    results = plan_and_preprocess(
        args.d,
        planner=args.pl,
        preset=args.p,
        configuration=args.c,
        num_processes=args.np,
        gpu_memory_target=args.gpu_memory_target,
        overwrite_target_spacing=args.overwrite_target_spacing,
        overwrite_plans_name=args.overwrite_plans_name,
        overwrite_plans=args.overwrite_plans,
        reorient=args.reorient,
        allow_other_intensities=args.allow_other_intensities,
        clean=args.clean,
        preprocess=not args.no_pp,
        num_parts=args.num_parts,
        part_id=args.part_id,
        strict=args.strict,
        show_progress=not args.no_pbar,
        overwrite_volumes=args.overwrite_volumes,
    )
    flags = ["--allow_other_intensities"] if args.allow_other_intensities else []
    print(rendered(after_planning(results, args.num_parts, *flags)))
    return LEFT_OUT if any(result.left_out for result in results) else 0


if __name__ == "__main__":
    main()

"""`nnssl_doctor`: is everything in place?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.run import run

if TYPE_CHECKING:
    from nnssl.installation import Check

EPILOG = """One line for each thing that was looked at: ok; warn, where work is possible and a surprise too; fail, where
something will not work. Below a warn or a fail stands the line to type.
Exit code: 0 nothing failed, 1 something did.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments: none."""
    return argparse.ArgumentParser(
        "nnssl_doctor",
        description="Looks at versions, nnU-Net's folders, finished pretrainings, torch's device, whether nnU-Net\n"
        "finds our trainers, and the other package that is imported as nnssl; says what to type. Changes nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    parser().parse_args(argv)
    from nnssl import check_installation

    statuses = [check.status for check in check_installation(_show)]
    failed, warned = statuses.count("fail"), statuses.count("warn")
    print(f"{failed} failed, {warned} to look at, {len(statuses) - failed - warned} in order")
    return 1 if failed else 0


def _show(check: Check) -> None:
    print(f"{check.status:<4}  {check.name}: {check.message}", flush=True)
    if check.fix is not None:
        print(f"      type: {check.fix}", flush=True)


if __name__ == "__main__":
    main()

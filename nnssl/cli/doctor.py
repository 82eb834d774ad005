"""`nnssl_doctor`: is everything in place?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnssl.cli.flags import new_parser
from nnssl.cli.run import entry

if TYPE_CHECKING:
    from nnssl.installation import Check

EPILOG = """One line for each check: ok; warn, where work is possible but may surprise you; fail, where something
will not work. Below a warn or a fail is the line to type.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments: none."""
    return new_parser(
        "nnssl_doctor",
        "nnssl_doctor",
        EPILOG,
        "Also checks versions, torch's device, whether nnU-Net finds the trainers of this package, and whether the "
        "other package named nnssl is in the way. Changes nothing, and says what to type.",
        {0: "nothing failed", 1: "a check failed"},
    )


def _command(_: argparse.Namespace) -> int:
    from nnssl import check_installation

    statuses = [check.status for check in check_installation(_show)]
    failed, warned = statuses.count("fail"), statuses.count("warn")
    print(f"{failed} failed, {warned} to look at, {len(statuses) - failed - warned} in order")
    return 1 if failed else 0


def _show(check: Check) -> None:
    print(f"{check.status:<4}  {check.name}: {check.message}", flush=True)
    if check.fix is not None:
        print(f"      type: {check.fix}", flush=True)


main = entry(parser, _command)

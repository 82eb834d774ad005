"""Is everything in place? What `nnssl_doctor` checks, and what to type where something is wrong."""

from __future__ import annotations

from collections.abc import Callable

from nnssl.installation.environment import (
    Check,
    check_completion,
    check_device,
    check_folders,
    check_other_package,
    check_packages,
    check_pretrainings,
    check_python,
    check_stock_plans,
)
from nnssl.installation.trainers import check_trainers

__all__ = ["Check", "check_installation"]


def check_installation(report: Callable[[Check], None] | None = None) -> list[Check]:
    """Check versions, name clashes, folders, pretrainings, device and trainers; nothing is changed.

    Args:
        report: called with each check as soon as it is made; the last ones import torch and nnU-Net, which takes
            about ten seconds.
    """
    looks = (check_python, check_packages, check_other_package, check_folders, check_stock_plans, check_pretrainings,
             check_completion, check_device, check_trainers)  # fmt: skip
    checks: list[Check] = []
    for look in looks:
        for check in look():
            checks.append(check)
            if report is not None:
                report(check)
    return checks

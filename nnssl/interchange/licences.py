"""What the name of a licence says: whether it forbids commercial use, or derived works."""

from __future__ import annotations

import re

_NON_COMMERCIAL = re.compile(
    r"(?<![a-z])NC(?![a-z])|\bno[nt]?[-\s]*(?:for\s+)?commercial|\b(?:research|academic)\s+(?:use\s+)?only",
    re.IGNORECASE,
)
_NO_DERIVATIVES = re.compile(r"(?<![a-z])ND(?![a-z])|no-?\s?deriv", re.IGNORECASE)


def is_non_commercial(licence: str) -> bool:
    """Whether a licence such as "CC BY-NC 4.0" forbids commercial use."""
    return bool(_NON_COMMERCIAL.search(licence))


def is_no_derivatives(licence: str) -> bool:
    """Whether a licence such as "CC BY-ND 4.0" forbids to pass on what is derived from the work."""
    return bool(_NO_DERIVATIVES.search(licence))


def licence_warnings(licence: str | None, name: object) -> list[str]:
    """What users must know of the licence of weights, in sentences.

    Args:
        licence: of the weights; None where unknown.
        name: of the weights.
    """
    if licence is None:
        return [f"the licence of {name} is not known; look it up where you got them, and give it with -license"]
    warnings = []
    if is_non_commercial(licence):
        warnings.append(f"{name} are licensed {licence}: no commercial use, nor of what is trained from them")
    if is_no_derivatives(licence):
        warnings.append(f"{name} are licensed {licence}: weights that are trained from them must not be passed on")
    return warnings

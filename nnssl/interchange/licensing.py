"""What licences of weights say, and that of exported ones: the author's choice within the terms of the origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.names import shown

# Identifiers that model hubs know, with what each asks of those who use the weights.
_TERMS: dict[str, set[str]] = {
    "apache-2.0": {"by"},
    "mit": {"by"},
    "bsd-2-clause": {"by"},
    "bsd-3-clause": {"by"},
    "cc0-1.0": set(),
    "unlicense": set(),
    "gpl-3.0": {"by", "sa"},
    "agpl-3.0": {"by", "sa"},
    "lgpl-3.0": {"by", "sa"},
    **{
        f"cc-{'-'.join(words)}-{version}": set(words)
        for words in (("by",), ("by", "sa"), ("by", "nc"), ("by", "nd"), ("by", "nc", "sa"), ("by", "nc", "nd"))
        for version in ("3.0", "4.0")
    },
}
_FORM = re.compile(r"[\w.+() -]{2,80}")
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


def licence_id(name: str) -> str:
    """Identifier of a licence as model hubs write it; another name stays as it is.

    Args:
        name: such as "CC BY-NC 4.0", "Apache 2.0" or "mit".
    """
    plain = re.sub(r"\(.*?\)|\blicen[cs]e\b|\bthe\b", " ", name.lower())
    word = "-".join(re.findall(r"[a-z0-9.+]+", plain))
    if word.startswith("apache"):
        return "apache-2.0"
    return word if word in _TERMS else name.strip()


def is_known(licence: str) -> bool:
    """Whether model hubs know the identifier."""
    return licence in _TERMS


def terms_of(licence: str) -> set[str]:
    """What a licence asks: `by` (credit), `sa` (the same licence), `nc` (no commerce), `nd` (no derived works).

    A licence that is not known asks for what its name says, and for more that only it can keep.
    """
    if licence in _TERMS:
        return _TERMS[licence]
    said = {"nc": is_non_commercial(licence), "nd": is_no_derivatives(licence),
            "sa": bool(re.search(r"\bSA\b|share-?\s?alike", licence, re.IGNORECASE))}  # fmt: skip
    return {"by", *(term for term, holds in said.items() if holds), f"all of {licence}"}


def choose_licence(asked: str | None, origin: Mapping[str, Any] | None, run: object) -> str | None:
    """The licence of exported weights, as `licence_id`; None where nobody gave one.

    Args:
        asked: by the user.
        origin: of the weights (`nnssl.checkpoints.origin.origin_of`).
        run: for messages.

    Raises:
        UserError: the licence of the origin forbids to pass the weights on, or `asked` leaves out some of its terms.
    """
    if asked is not None and not _FORM.fullmatch(asked):
        raise UserError(f"-license takes an identifier such as apache-2.0 or cc-by-4.0, not {shown(asked)}")
    chosen = None if asked is None else licence_id(asked)
    if origin is None or not origin.get("licence"):
        return chosen
    inherited, title = licence_id(origin["licence"]), origin.get("title") or "other weights"
    terms = terms_of(inherited)
    if "nd" in terms and origin.get("derived"):
        raise UserError(f"{run} was trained from {title}, whose licence {inherited} lets nobody pass on what "
                        f"derives from them; export a run that began with other weights")  # fmt: skip
    if chosen is None:
        return inherited
    if (missing := terms - terms_of(chosen)) or ("sa" in terms and chosen != inherited):
        kept = ", ".join(sorted(missing)) or "the same licence"
        raise UserError(f"{run} holds or derives from {title}, licensed {inherited}, and -license {chosen} leaves out "
                        f"terms of that ({kept}); leave -license out to keep {inherited}")  # fmt: skip
    return chosen

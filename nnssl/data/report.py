"""Which volumes were left out and why, and which are oriented unlike the others."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.errors import UserError

_NAMED = 10  # volumes that the orientation warning names
_DELETE = "delete it, it is written anew"

logger = logging.getLogger("nnssl")


def report_file(preprocessed: Path, plans_name: str, num_parts: int = 1, part_id: int = 0) -> Path:
    """`<plans>_left_out.json` of a dataset, or that of one part."""
    part = f"_part_{part_id}_of_{num_parts}" if num_parts > 1 else ""
    return preprocessed / f"{plans_name}_left_out{part}.json"


def orientation_summary(orientations: Mapping[str, str | None]) -> dict[str, Any]:
    """Counts by orientation, the commonest one and the cases that differ from it.

    Args:
        orientations: letters such as LPS by case; None (the format does not know) is not counted.
    """
    known = {case: letters for case, letters in orientations.items() if letters is not None}
    counts = Counter(dict(sorted(Counter(known.values()).items())))
    majority = counts.most_common(1)[0][0] if counts else None
    differ = {case: letters for case, letters in sorted(known.items()) if letters != majority}
    return {"counts": dict(counts.most_common()), "majority": majority, "different": differ}


def earlier_orientations(file: Path, cases: set[str]) -> dict[str, str | None]:
    """Orientations of `cases` as an earlier run found them; nothing where its report is missing."""
    if not file.is_file():
        return {}
    summary = read_json(file, fix=_DELETE)["orientation"]
    return {case: summary["different"].get(case, summary["majority"]) for case in cases}


def recalled_orientations(home: Path, first: Sequence[Path], cases: set[str]) -> dict[str, str]:
    """Orientations of `cases` that earlier reports know; those of the reports `first`, then of all others in `home`."""
    found: dict[str, str] = {}
    for file in (*first, *sorted(home.glob("*_left_out*.json"))) if cases else ():
        known = {case: letters for case, letters in earlier_orientations(file, cases).items() if letters}
        found = known | found
    return found


def earlier_reasons(file: Path) -> dict[str, str]:
    """Why an earlier run left cases out, by case; nothing where its report is missing."""
    return dict(read_json(file, fix=_DELETE)["left_out"]) if file.is_file() else {}


def write_report(
    file: Path, left_out: Mapping[str, str], orientations: Mapping[str, str | None], may_write: bool = True
) -> None:
    """Write the JSON where it says something new, log every volume that was left out, and warn of other orientations.

    Args:
        file: see `report_file`.
        left_out: reason by case.
        orientations: see `orientation_summary`.
        may_write: False for a folder that is only read.
    """
    summary = orientation_summary(orientations)
    content = {"left_out": dict(sorted(left_out.items())), "orientation": summary}
    if may_write and not (file.is_file() and _holds(file, content)):
        write_json(file, content)
    differ = summary["different"]
    if differ:
        named = ", ".join(f"{case} ({letters})" for case, letters in list(differ.items())[:_NAMED])
        logger.warning(
            "%d of %d volumes are not oriented %s as the others: %s%s. nnU-Net does not reorient, and methods that "
            "learn positions suffer", len(differ), sum(summary["counts"].values()), summary["majority"], named,
            ", ..." if len(differ) > _NAMED else "",
        )  # fmt: skip
    for case, reason in sorted(left_out.items()):
        logger.warning("left out: %s: %s", case, reason)


def refuse_left_out(dataset: str, left_out: Mapping[str, str]) -> None:
    """What `--strict` does: raise UserError that names every volume that was left out."""
    if left_out:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(left_out.items()))
        raise UserError(f"{dataset}: --strict refuses volumes that cannot be used ({reasons}); mend or remove them, or "
                        f"run without --strict")  # fmt: skip


def nothing_usable(name: str, left_out: Mapping[str, str]) -> str:
    """A sentence for a dataset of which nothing is left."""
    reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(left_out.items())[:5])
    return f"{name}: no volume can be used; mend the files ({reasons})"


def _holds(file: Path, content: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(file.read_text()) == content)
    except ValueError:
        return False

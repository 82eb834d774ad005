"""Which volumes were left out and why, and which are oriented unlike the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import ReportFile
from nnssl.data.guard import STOCK_WAY_OUT, named
from nnssl.errors import UserError

NEW_REPORT = "delete it: nnssl_plan_and_preprocess writes it anew"
_NAMED = 10  # volumes and files that the log names

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
    summary = read_json(file, ReportFile, NEW_REPORT)["orientation"]
    return {case: summary["different"].get(case, summary["majority"]) for case in cases}


def earlier_warnings(file: Path, cases: set[str]) -> dict[str, list[str]]:
    """Warnings of `cases` as an earlier run found them; nothing where its report is missing."""
    if not file.is_file():
        return {}
    warnings = read_json(file, ReportFile, NEW_REPORT).get("warnings", {})
    return {case: list(found) for case, found in warnings.items() if case in cases}


def recalled_orientations(home: Path, first: Sequence[Path], cases: set[str]) -> dict[str, str]:
    """Orientations of `cases` that earlier reports know; those of the reports `first`, then of all others in `home`."""
    found: dict[str, str] = {}
    for file in (*first, *sorted(home.glob("*_left_out*.json"))) if cases else ():
        known = {case: letters for case, letters in earlier_orientations(file, cases).items() if letters}
        found = known | found
    return found


def earlier_reasons(file: Path) -> dict[str, str]:
    """Why an earlier run left cases out, by case; nothing where its report is missing."""
    return dict(read_json(file, ReportFile, NEW_REPORT)["left_out"]) if file.is_file() else {}


def write_report(
    file: Path,
    left_out: Mapping[str, str],
    orientations: Mapping[str, str | None],
    warnings: Mapping[str, Sequence[str]] | None = None,
    ignored: Mapping[str, str] | None = None,
    may_write: bool = True,
) -> None:
    """Write the JSON where it says something new; log what was left out, other orientations, grids and files.

    Args:
        file: see `report_file`.
        left_out: reason by case.
        orientations: see `orientation_summary`.
        warnings: what else should be looked at, by case.
        ignored: why files belong to no case, by file.
        may_write: False for a folder that is only read.
    """
    summary = orientation_summary(orientations)
    doubts = {case: list(found) for case, found in sorted((warnings or {}).items()) if found}
    unused = dict(sorted((ignored or {}).items()))
    content = {"left_out": dict(sorted(left_out.items())), "orientation": summary, "warnings": doubts,
               "ignored": unused}  # fmt: skip
    if may_write and not (file.is_file() and _holds(file, content)):
        write_json(file, content)
    _warn(doubts, unused)
    differ = summary["different"]
    if differ:
        total = sum(summary["counts"].values())
        logger.warning("volumes are not oriented %s as the others: %s. nnU-Net does not reorient, and methods that "
                       "learn positions suffer; %s", summary["majority"], named(differ, total),
                       STOCK_WAY_OUT)  # fmt: skip
    for case, reason in sorted(left_out.items()):
        logger.warning("left out: %s: %s", case, reason)


def refuse_left_out(
    dataset: str, left_out: Mapping[str, str], warnings: Mapping[str, Sequence[str]] | None = None
) -> None:
    """What `--strict` does: raise UserError that names every volume that was left out, or that a warning is about."""
    found = {case: "; ".join(texts) for case, texts in (warnings or {}).items() if texts} | dict(left_out)
    if found:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(found.items()))
        raise UserError(f"{dataset}: --strict refuses volumes that cannot be used ({reasons}); mend or remove them, or "
                        f"run without --strict")  # fmt: skip


def _warn(warnings: Mapping[str, Sequence[str]], ignored: Mapping[str, str]) -> None:
    for case, found in list(warnings.items())[:_NAMED]:
        logger.warning("%s: %s", case, "; ".join(found))
    if len(warnings) > _NAMED:
        logger.warning("... and %d more volumes with such a warning, all in the report", len(warnings) - _NAMED)
    if ignored:
        named = ", ".join(f"{file} ({why})" for file, why in list(ignored.items())[:_NAMED])
        count = f"{len(ignored)} files belong" if len(ignored) > 1 else "1 file belongs"
        logger.warning("%s to no case: %s%s", count, named, ", ..." if len(ignored) > _NAMED else "")


def nothing_usable(name: str, left_out: Mapping[str, str]) -> str:
    """A sentence for a dataset of which nothing is left."""
    reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(left_out.items())[:5])
    return f"{name}: no volume can be used; mend the files ({reasons})"


def _holds(file: Path, content: Mapping[str, Any]) -> bool:
    try:
        return bool(read_json(file) == content)
    except UserError:  # a damaged one is written anew
        return False

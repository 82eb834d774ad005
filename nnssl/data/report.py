"""Which volumes were left out and why, and which are oriented unlike the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import ReportFile
from nnssl.errors import UserError

NEW_REPORT = "delete it: nnssl_plan_and_preprocess writes it anew"
_NAMED = 10  # volumes that the orientation warning names

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


def write_report(file: Path, left_out: Mapping[str, str], orientations: Mapping[str, str | None]) -> None:
    """Write the JSON, log every volume that was left out, and warn of other orientations."""
    summary = orientation_summary(orientations)
    write_json(file, {"left_out": dict(sorted(left_out.items())), "orientation": summary})
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

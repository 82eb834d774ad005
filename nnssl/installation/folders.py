"""nnU-Net's three folders, and the finished pretrainings in them."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnssl.installation.check import INSTALL, Check, in_a_line

FREE_GIB = 10.0  # less than this is soon full of preprocessed volumes or checkpoints
NAMED = 10  # datasets that a line names at most
FINISHED = "*/nnssl_*/fold_*/checkpoint_final.pth"


def check_folders() -> Iterator[Check]:
    """Whether the folders are set, exist, and have the rights and the room."""
    yield _check("nnUNet_raw", written=False)
    yield _check("nnUNet_preprocessed", written=True)
    yield _check("nnUNet_results", written=True)


def _check(name: str, written: bool) -> Check:
    value = os.environ.get(name)
    choose = f"export {name}=/path/to/{name}"
    if not value:
        return Check(name, "fail", "is not set", choose)
    if not os.path.isdir(value):
        # what is written to is made when it is first needed
        return Check(name, "warn" if written else "fail", f"{value} is not a folder", f"mkdir -p {shlex.quote(value)}")
    if not os.access(value, os.R_OK | os.X_OK):
        return Check(name, "fail", f"{value} cannot be read", choose)
    if written and not os.access(value, os.W_OK):
        return Check(name, "fail", f"{value} cannot be written to", choose)
    free = shutil.disk_usage(value).free / 2**30
    if written and free < FREE_GIB:
        return Check(name, "warn", f"{value}, only {free:.1f} GiB free", f"{choose}   (on a larger disk; or make room)")
    return Check(name, "ok", f"{value}, {free:.0f} GiB free")


def check_pretrainings() -> Iterator[Check]:
    """The runs that a trainer can start from, one line each."""
    results = os.environ.get("nnUNet_results")
    if not results:
        return  # said by check_folders
    found = sorted(Path(results).glob(FINISHED))
    for checkpoint in found:
        yield Check("pretraining", "ok", str(checkpoint.relative_to(results)))
    if not found:
        yield Check("pretraining", "ok", "none is finished yet; nnssl_pretrain makes one")


def check_stock_plans() -> Iterator[Check]:
    """Whether the labelled datasets have nnU-Net's own plans: without -p, nnUNetv2_train ends in a traceback if not."""
    raw, preprocessed = (os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not raw or not preprocessed or not os.path.isdir(raw):
        return  # said by check_folders
    try:
        from nnssl.data.next_lines import STOCK_PLANS, plan_lines
        from nnssl.data.raw import number_of_labels
    except Exception as error:  # a package that is missing, or does not load
        yield Check("stock plans", "fail", f"datasets cannot be read: {in_a_line(error)}", INSTALL)
        return
    labelled = [folder.name for folder in sorted(Path(raw).glob("Dataset*_*")) if number_of_labels(folder)]
    lacking = [name for name in labelled if not (Path(preprocessed) / name / f"{STOCK_PLANS}.json").is_file()]
    if lacking:
        shown = ", ".join(lacking[:NAMED]) + (", ..." if len(lacking) > NAMED else "")
        yield Check("stock plans", "warn", f"nnUNetv2_train needs -p for {shown}: no {STOCK_PLANS}.json",
                    " && ".join(plan_lines(*lacking)))  # fmt: skip
    else:
        yield Check("stock plans", "ok", f"{len(labelled)} labelled datasets, each with {STOCK_PLANS}.json")

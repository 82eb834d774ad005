"""Start of nnssl_plan_and_preprocess on a finished dataset: CPU seconds for many cases with tiny files.

    python benchmarks/done_dataset.py                (10,000 cases with labels)

It prepares two cases and copies their raw and preprocessed files under other names. The first run then finds volumes
without a record, as in a folder from another version; for the other runs everything is known.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

NAME, PLANS = "Dataset001_Many", "nnsslPlans_tiny"
LINE = (sys.executable, "-m", "nnssl.cli.plan_and_preprocess", "-d", "1", "-p", PLANS, "-np", "1")
SHAPE = (12, 24, 24)


def main() -> None:
    """Make the dataset in a temporary folder and time the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cases", type=int, default=10_000)
    parser.add_argument("-repeats", type=int, default=3, help="runs after the first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
        environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1"}
        write_raw(root / "raw" / NAME)
        timed(environment)
        for folder, ends in file_ends(root).items():
            multiply(folder, ends, arguments.cases)
        for run in range(1 + arguments.repeats):
            wall, cpu, ready = timed(environment)
            print(f"run {run + 1}: {cpu:6.2f} CPU s, {wall:6.2f} s, {ready} volumes ready", flush=True)


def write_raw(folder: Path) -> None:
    """Two labelled cases."""
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 2}))
    for case in range(2):
        hu = np.random.default_rng(case).normal(40, 10, SHAPE).astype(np.int16)
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[4:8, 8:16, 8:16] = 1
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(folder / "imagesTr" / f"case_{case:05d}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(folder / "labelsTr" / f"case_{case:05d}.nii.gz"))


def file_ends(root: Path) -> dict[Path, tuple[str, ...]]:
    """What the names of a case's files end in, by folder."""
    raw, home = root / "raw" / NAME, root / "preprocessed" / NAME
    volumes = home / f"{PLANS}_3d_fullres"
    return {
        raw / "imagesTr": ("_0000.nii.gz",),
        raw / "labelsTr": (".nii.gz",),
        home / "gt_segmentations": (".nii.gz",),
        volumes.with_name(f"{volumes.name}_body"): (".b2nd",),
        volumes: ("_seg.b2nd", ".pkl", ".b2nd"),
    }


def multiply(folder: Path, ends: tuple[str, ...], cases: int) -> None:
    """Copies of the first case's files for all other cases."""
    for end in ends:
        for case in range(2, cases):
            shutil.copy2(folder / f"case_00000{end}", folder / f"case_{case:05d}{end}")


def timed(environment: dict[str, str]) -> tuple[float, float, int]:
    """Wall and CPU seconds of the command, and the number of volumes that it calls ready."""
    before, begin = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(LINE, env=environment, check=True, capture_output=True, text=True)
    ready = re.findall(r"(\d+) volumes ready", done.stdout)
    return time.perf_counter() - begin, _cpu_seconds() - before, int(ready[-1])


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()

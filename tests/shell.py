"""Whole commands in a shell, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.preloaded import write_commands


class Walk:
    """A folder, an environment, and a shell that runs commands in both.

    The commands start with their libraries loaded; `installed` is the PATH of those that start as a user's do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.raw = folder, folder / "nnUNet_raw"
        own = ("nnUNet_", "nnssl_")
        self.installed = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        write_commands(folder / "commands")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(own)} | {
            "PATH": f"{folder / 'commands'}{os.pathsep}{self.installed}",
            "nnUNet_n_proc_DA": "1",
            "nnUNet_npp": "1",
            "nnUNet_nps": "1",
            "nnUNet_def_n_proc": "1",
            "MPLBACKEND": "agg",
        }
        for name in ("raw", "preprocessed", "results"):
            self.environment[f"nnUNet_{name}"] = str(folder / f"nnUNet_{name}")

    def run(self, script: str, **variables: str) -> str:
        """What the script printed; a failing command is shown with all that was printed before it."""
        done = subprocess.run(
            ["bash", "-c", f"set -euxo pipefail\n{script}"],
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout


def volume(folder: Path, case: str = "case_000") -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz")))

"""`make environments`: the wheel in bare environments, with the oldest and the newest dependencies that it allows.

    python -m tests.environments -python 3.10 3.13 -bounds oldest newest

The wheel and the source archive are built and checked. Then, one environment after the other, the wheel is installed
with its extras beside pinned dependencies (tests.environments.bounds), and the checks (tests.environments.checks) run
with the tests of the source archive. An environment takes some 7 GB while it is there. Prints a table; the output of
every check is in the folder -o. Exit code 1 where one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.environments.bounds import Bounds, pinned, raised, requirements
from tests.environments.checks import CHECKS, EXTRAS, ONNX, ONNX_CHECKS, Check

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 3600
_LISTED = ("torch", "nnunetv2", "numpy", "scipy", "monai", "pydantic", "simpleitk", "blosc2", "onnx")


@dataclass
class Environment:
    """A virtual environment of one Python, with one kind of bounds.

    Args:
        folder: empty; everything is written into it.
        python: version or interpreter, as `uv --python` takes it.
        bounds: of the dependencies.
        archives: folder with the wheel and the source archive.
        uv: the program.
    """

    folder: Path
    python: str
    bounds: Bounds
    archives: Path
    uv: str
    installed: list[str] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Install, check, install what only the ONNX commands need, check again."""
        (self.folder / "logs").mkdir(parents=True)
        self._bash("venv", f"{self.uv} venv --quiet --python {self.python} {self.folder / 'venv'}")
        for extras, group in ((EXTRAS, CHECKS), ((*EXTRAS, ONNX), ONNX_CHECKS)):
            self._install(extras)
            for check in group:
                self.results[check.name] = self._check(check)

    def rows(self) -> list[str]:
        """Its lines of the table."""
        name = f"Python {self.python}, {self.bounds}"
        return [f"| {name} | {'; '.join(self.installed)} | {check} | {result} |"
                for check, result in self.results.items()]  # fmt: skip

    def _install(self, extras: Sequence[str]) -> None:
        wheel = next(self.archives.glob("*.whl"))
        asked = requirements(wheel, extras)
        pins = pinned(self.uv, self.python, self.bounds, asked)
        constraints, wanted = self.folder / f"pins{len(extras)}.txt", self.folder / "wanted.txt"
        constraints.write_text(pins)
        wanted.write_text(f"nnssl[{','.join(extras)}] @ file://{wheel}\npytest>=8\n")
        self._bash("install", f"{self.uv} pip install --quiet --python {self.folder / 'venv'} "
                              f"-r {wanted} -c {constraints}")  # fmt: skip
        self.installed = [line.replace("==", " ") for line in pins.splitlines() if line.partition("==")[0] in _LISTED]
        print(f"  {', '.join(self.installed)}", flush=True)
        if self.bounds == "oldest":
            print(f"  above the bounds: {', '.join(raised(pins, asked)) or 'none'}", flush=True)

    def _check(self, check: Check) -> str:
        """ "ok" with the last line and the seconds, or the failure."""
        place, started = self._place(check), time.monotonic()
        done = self._bash(check.name, check.line, place, fails=True)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        said = lines[-1].strip("= ") if lines and ("pytest" in check.line or check.name == "imports") else ""
        word = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
        print(f"  {check.name}: {word} {said} [{time.monotonic() - started:.0f} s]", flush=True)
        shutil.rmtree(place)
        return f"{word} {said}".strip()

    def _place(self, check: Check) -> Path:
        """The source archive without what the wheel holds, and nnU-Net's folders."""
        place = self.folder / "place"
        unpack(self.archives, place)
        for name in ("nnssl", "nnssl_trainers"):
            shutil.rmtree(place / name)
        for name in ("raw", "preprocessed", "results"):
            (place / f"nnUNet_{name}").mkdir()
        return place

    def _bash(
        self, name: str, line: str, place: Path | None = None, fails: bool = False
    ) -> subprocess.CompletedProcess[str]:
        kept = ("PATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS")
        environment = {
            k: v for k, v in os.environ.items() if k in kept or k.startswith(("UV_", "SSL_", "HTTP", "PIP_"))
        }
        if place is not None:
            environment |= {
                f"nnUNet_{each}": str(place / f"nnUNet_{each}") for each in ("raw", "preprocessed", "results")
            }
            environment |= {"PATH": f"{self.folder / 'venv' / 'bin'}{os.pathsep}{environment['PATH']}",
                            "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f",
                            "MPLBACKEND": "agg", "nnssl_num_epochs": "1", "nnssl_num_iterations_per_epoch": "2",
                            "nnssl_num_val_iterations_per_epoch": "1"}  # fmt: skip
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=place, env=environment, text=True,
                              timeout=_PATIENCE_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        (self.folder / "logs" / f"{name.replace(' ', '_').replace(',', '')}.txt").write_text(done.stdout)
        if done.returncode and not fails:
            raise SystemExit(f"{line} ends with code {done.returncode}:\n{done.stdout[-3000:]}")
        return done


def build(folder: Path) -> None:
    """Source archive, and the wheel that it makes, checked as an index would."""
    make = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*make, "-t", "sdist"], cwd=_ROOT, check=True)
    unpacked = folder.parent / "source"
    unpack(folder, unpacked)
    subprocess.run([*make, "-t", "wheel"], cwd=unpacked, check=True)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.iterdir())], check=True)


def unpack(archives: Path, place: Path) -> None:
    """Content of the source archive as a new folder."""
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive, tempfile.TemporaryDirectory() as folder:
        archive.extractall(folder, filter="data")
        shutil.move(next(Path(folder).iterdir()), place)


def main() -> None:
    """Entry point."""
    p = argparse.ArgumentParser("python -m tests.environments", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("-python", nargs="+", default=["3.10", "3.13"], metavar="PYTHON", help="versions or interpreters")
    p.add_argument("-bounds", nargs="+", default=["oldest", "newest"], choices=["oldest", "newest"])
    p.add_argument("-o", type=Path, default=Path("environments"), metavar="FOLDER", dest="output", help="made anew")
    p.add_argument("--keep", action="store_true", help="leave the environments there")
    arguments = p.parse_args()
    import uv

    output = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    build(output / "archives")
    made = []
    for python in arguments.python:
        for bounds in arguments.bounds:
            print(f"Python {python}, {bounds}", flush=True)
            name = f"{Path(python).name}-{bounds}"
            made.append(Environment(output / name, python, bounds, output / "archives", uv.find_uv_bin()))
            made[-1].run()
            if not arguments.keep:
                shutil.rmtree(made[-1].folder / "venv")
    table = [
        "| environment | installed | checked | result |",
        "|---|---|---|---|",
        *(r for e in made for r in e.rows()),
    ]
    (output / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))
    sys.exit(any(not result.startswith("ok") for e in made for result in e.results.values()))


if __name__ == "__main__":
    main()

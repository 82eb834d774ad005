"""The oldest or the newest releases that pyproject.toml allows, as a list that pins everything."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Bounds = Literal["oldest", "newest"]

# Without these, uv would take releases that it must first compile: the oldest one with a wheel is what users get.
COMPILED = ("torch", "numpy", "scipy", "scikit-learn", "simpleitk", "blosc2", "matplotlib", "pandas", "pydantic",
            "pydantic-core", "psutil", "onnx", "onnxruntime", "safetensors")  # fmt: skip
_RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}


def requirements(wheel: Path, extras: Sequence[str]) -> list[str]:
    """`name>=bound` of everything that a wheel asks for with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    of_extra = {line: re.search(r"; extra == ['\"](.+)['\"]$", line) for line in asked}
    return [line.partition(";")[0].strip() for line, extra in of_extra.items() if extra is None or extra[1] in extras]


def pinned(uv: str, python: str, bounds: Bounds, asked: Sequence[str]) -> str:
    """Lines `name==version` of these requirements and of everything that they need.

    `oldest` takes their lower bounds, or the next release with a wheel for this Python; what they need themselves is as
    new as they allow.
    """
    command = [uv, "pip", "compile", "--quiet", "--python", python, "--resolution", _RESOLUTIONS[bounds],
               "--no-annotate", "--no-header", "-"]  # fmt: skip
    command += [part for name in COMPILED for part in ("--only-binary", name)]
    return subprocess.run(command, check=True, input="\n".join(asked), stdout=subprocess.PIPE, text=True).stdout


def raised(pins: str, asked: Sequence[str]) -> list[str]:
    """`name bound -> release` where the pinned release is newer than the highest bound that was asked for."""
    bounds: dict[str, str] = {}
    for requirement in asked:
        name, _, bound = requirement.partition(">=")
        bounds[_key(name)] = max(bound, bounds.get(_key(name), "0"), key=_numbers)
    taken = re.findall(r"^([\w.-]+)==(\S+)", pins, flags=re.MULTILINE)
    return [f"{name} {bounds[_key(name)]} -> {version}" for name, version in taken
            if _key(name) in bounds and _numbers(version) > _numbers(bounds[_key(name)])]  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

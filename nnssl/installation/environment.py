"""Versions, torch's device, and the other package that is imported as `nnssl`."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nnssl
from nnssl.installation.check import INSTALL, Check, in_a_line

PYTHON = (3, 10)
# The bounds of pyproject.toml for the packages whose version decides what works.
MINIMA = {"nnunetv2": "2.8", "torch": "2.4", "dynamic-network-architectures": "0.4.4", "blosc2": "3.3.2"}
# Of the other project that is imported as `nnssl`: what its package holds and ours never does, and its commands.
OTHERS_FILES = (
    "adaptation_planning", "architectures", "configuration.py", "dataset_conversion", "experiment_planning", "paths.py",
    "preprocessing", "run", "ssl_data", "training",
)  # fmt: skip
OTHERS_COMMANDS = ("nnssl_train", "nnssl_preprocess", "nnssl_plan_experiment", "nnssl_extract_fingerprint")
OTHER = "the other package that is imported as nnssl (MIC-DKFZ/nnssl)"


def check_python() -> Iterator[Check]:
    """The interpreter's version."""
    found, needed = (".".join(map(str, version)) for version in (sys.version_info[:3], PYTHON))
    if sys.version_info[:2] >= PYTHON:
        yield Check("python", "ok", f"{found} ({sys.executable})")
    else:
        yield Check("python", "fail", f"{found} is too old; {needed} or newer is needed",
                    f"python{needed} -m venv .venv")  # fmt: skip


def check_packages() -> Iterator[Check]:
    """The versions of nnssl and of what it stands on."""
    folder = _own_folder()
    version = _installed("nnssl")
    if version is None:
        yield Check("nnssl", "warn", f"{folder} is not installed: the commands and the start-up file are missing",
                    f"pip install -e {shlex.quote(str(folder.parent))}")  # fmt: skip
    else:
        yield Check("nnssl", "ok", f"{version} ({folder})")
    for name, minimum in MINIMA.items():
        version = _installed(name)
        if version is not None and _numbers(version) >= _numbers(minimum):
            yield Check(name, "ok", version)
            continue
        found = "is not installed" if version is None else f"{version} is too old"
        yield Check(name, "fail", f"{found}; {minimum} or newer is needed", f'pip install "{name}>={minimum}"')


def check_other_package() -> Iterator[Check]:
    """Files of the other nnssl among ours, or its commands on PATH."""
    folder = _own_folder()
    mixed = [name for name in OTHERS_FILES if (folder / name).exists()]
    if not hasattr(nnssl, "__version__"):
        mixed.append("__init__.py")
    commands = [found for name in OTHERS_COMMANDS if (found := shutil.which(name))]
    if mixed:
        theirs = shlex.join(str(folder / name) for name in mixed)
        yield Check("other nnssl", "fail", f"{folder} also holds files of {OTHER}: {', '.join(mixed)}",
                    f"pip uninstall -y nnssl; rm -rf {theirs}; {INSTALL}")  # fmt: skip
    elif commands:
        yield Check("other nnssl", "warn", f"commands of {OTHER} are on PATH: {', '.join(commands)}",
                    f"pip uninstall -y nnssl; pip uninstall -y nnssl; {INSTALL}")  # fmt: skip
    else:
        yield Check("other nnssl", "ok", f"no trace of {OTHER}")


def check_device() -> Iterator[Check]:
    """The cards that torch sees, or that it sees none."""
    try:
        import torch
    except Exception as error:  # also what a library that does not load, or another numpy, brings up
        yield Check("device", "fail", f"torch cannot be imported: {in_a_line(error)}",
                    "pip install --force-reinstall torch")  # fmt: skip
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if bf16 else "no bf16: float16 is used"
        yield Check("device", "ok", f"cuda:{index} {card.name}, {card.total_memory / 2**30:.0f} GiB, {precision}")
    if torch.cuda.device_count():
        return
    threads = f"cpu, {torch.get_num_threads()} threads: give the commands -device cpu"
    if shutil.which("nvidia-smi") is None:
        yield Check("device", "ok", threads)
    else:
        yield Check("device", "warn", f"{threads}; torch {torch.__version__} sees no card, nvidia-smi exists",
                    "nvidia-smi   (if it lists a card: install torch for the CUDA version that it names)")  # fmt: skip


def _own_folder() -> Path:
    return Path(str(nnssl.__file__)).resolve().parent


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 15, 0) for 2.15.0+cpu."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])

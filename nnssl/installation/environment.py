"""Checks of folders, datasets, versions, torch's device and the other package that is imported as `nnssl`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import nnssl

INSTALL = "pip install .   (in a fresh clone of ours)"
FREE_GIB = 10.0  # preprocessed volumes or checkpoints soon fill less than this
NAMED = 10  # at most this number of datasets in a line
FINISHED = "*/nnssl_*/fold_*/checkpoint_final.pth"
PYTHON = (3, 10)
# Bounds of pyproject.toml for the packages whose version decides what works.
MINIMA = {"nnunetv2": "2.8", "torch": "2.4", "dynamic-network-architectures": "0.4.4", "blosc2": "3.3.2"}
# Of the other project that is imported as `nnssl`: names in its package that ours never has, and its commands. It is
# the distribution `nnssl` too, so that pip replaces one by the other, whichever comes later.
OTHERS_FILES = (
    "adaptation_planning", "architectures", "configuration.py", "create_flat_json.py", "dataset_conversion",
    "experiment_planning", "imageio", "model_sharing", "paths.py", "preprocessing", "run", "ssl_data", "training",
    "utilities",
)  # fmt: skip
OTHERS_COMMANDS = ("nnssl_train", "nnssl_train_wandb", "nnssl_preprocess", "nnssl_plan_experiment",
                   "nnssl_extract_fingerprint", "nnssl_convert_openmind")  # fmt: skip
OURS = "nnssl_doctor"  # a command that only ours has
SHARED = "nnssl_plan_and_preprocess"  # a command that both have
_OTHERS_MODULE = b"nnssl.experiment_planning"  # that its script of this name imports
OTHER = "the other package that is imported as nnssl (MIC-DKFZ/nnssl)"


@dataclass(frozen=True)
class Check:
    """What was found about one thing.

    Args:
        name: what it is, such as "nnUNet_raw".
        status: "ok"; "warn" if work is possible but may surprise; "fail" if something will not work.
        message: what was found, in one line.
        fix: the line to type; None if nothing is wrong.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    fix: str | None = None


def in_a_line(error: BaseException) -> str:
    """Kind and text of an error, such as "ImportError: no module named x"."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_folders() -> Iterator[Check]:
    """Whether the folders are set and exist, may be read and written, and have space."""
    yield _check_folder("nnUNet_raw", written=False)
    yield _check_folder("nnUNet_preprocessed", written=True)
    yield _check_folder("nnUNet_results", written=True)


def _check_folder(name: str, written: bool) -> Check:
    value = os.environ.get(name)
    choose = f"export {name}=/path/to/{name}"
    if not value:
        return Check(name, "fail", "is not set", choose)
    if not os.path.isdir(value):
        # a folder for output is made when it is first needed
        return Check(name, "warn" if written else "fail", f"{value} is not a folder", f"mkdir -p {shlex.quote(value)}")
    if not os.access(value, os.R_OK | os.X_OK):
        return Check(name, "fail", f"{value} cannot be read", choose)
    if written and not os.access(value, os.W_OK):
        return Check(name, "fail", f"{value} cannot be written to", choose)
    free = shutil.disk_usage(value).free / 2**30
    if written and free < FREE_GIB:
        return Check(
            name, "warn", f"{value}, only {free:.1f} GiB free", f"{choose}   (on a larger disk, or free some space)"
        )
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
    """Whether the labelled datasets have nnU-Net's own plans: without them nnUNetv2_train needs -p."""
    raw, preprocessed = (os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    if not raw or not preprocessed or not os.path.isdir(raw):
        return  # said by check_folders
    try:
        from nnssl.data.next_lines import STOCK_PLANS, plan_lines
        from nnssl.data.raw import number_of_labels
    except Exception as error:  # a package is missing, or does not load
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


def check_python() -> Iterator[Check]:
    """The interpreter's version."""
    found, needed = (".".join(map(str, version)) for version in (sys.version_info[:3], PYTHON))
    if sys.version_info[:2] >= PYTHON:
        yield Check("python", "ok", f"{found} ({sys.executable})")
    else:
        yield Check("python", "fail", f"{found} is too old; {needed} or newer is needed",
                    f"python{needed} -m venv .venv")  # fmt: skip


def check_packages() -> Iterator[Check]:
    """The versions of nnssl and of the packages that it needs."""
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


def check_completion() -> Iterator[Check]:
    """What to type for the tab key, which nobody must use."""
    line = 'in the shell\'s start-up file: eval "$(nnssl -completion bash)"'
    found = "" if _installed("argcomplete") else "pip install argcomplete; then "
    yield Check("tab completion", "ok", f"{found}{line}")


def check_other_package() -> Iterator[Check]:
    """Files of the other nnssl among ours, its installation in place of ours, or its commands on PATH."""
    folder = _own_folder()
    mixed = [name for name in OTHERS_FILES if (folder / name).exists()]
    if not hasattr(nnssl, "__version__"):
        mixed.append("__init__.py")
    commands = [found for name in OTHERS_COMMANDS if (found := shutil.which(name))]
    shared = shutil.which(SHARED)
    wins = f"; {SHARED} is theirs: {shared}" if shared and _is_theirs(Path(shared)) else ""
    if mixed:
        theirs = shlex.join(str(folder / name) for name in mixed)
        yield Check("other nnssl", "fail", f"{folder} also holds files of {OTHER}: {', '.join(mixed)}",
                    f"pip uninstall -y nnssl; rm -rf {theirs}; {INSTALL}")  # fmt: skip
    elif _replaced():
        yield Check("other nnssl", "fail", f"pip has replaced ours by {OTHER}: both are the distribution nnssl; "
                    f"import nnssl still finds {folder}{wins}", f"pip uninstall -y nnssl; {INSTALL}")  # fmt: skip
    elif commands or wins:
        yield Check("other nnssl", "warn", f"commands of {OTHER} are on PATH: {', '.join(commands) or shared}{wins}",
                    f"pip uninstall -y nnssl; pip uninstall -y nnssl; {INSTALL}")  # fmt: skip
    else:
        yield Check("other nnssl", "ok", f"no trace of {OTHER}")


def _is_theirs(script: Path) -> bool:
    try:
        return _OTHERS_MODULE in script.read_bytes()
    except OSError:
        return False


def _replaced() -> bool:
    """Whether the installed distribution `nnssl` is the other one, while ours is imported from elsewhere."""
    try:
        commands = {entry.name for entry in metadata.distribution("nnssl").entry_points}
    except metadata.PackageNotFoundError:
        return False
    return OURS not in commands and not commands.isdisjoint(OTHERS_COMMANDS)


def check_device() -> Iterator[Check]:
    """The cards that torch sees, or that it sees none."""
    try:
        import torch
    except Exception as error:  # a library that does not load or another numpy raises errors of other kinds too
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
    threads = f"cpu, {torch.get_num_threads()} threads: nnU-Net's commands need -device cpu"
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

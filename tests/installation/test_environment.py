from __future__ import annotations

import builtins
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nnssl
from nnssl.installation.environment import (
    MINIMA,
    OTHERS_COMMANDS,
    OTHERS_FILES,
    OURS,
    PYTHON,
    SHARED,
    Check,
    check_completion,
    check_device,
    check_other_package,
    check_packages,
    check_python,
)

ROOT = Path(__file__).resolve().parents[2]


def _versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> dict[str, Check]:
    """The checks where all packages are new, but for those given; None: not installed."""

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"), "99.0")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return {check.name: check for check in check_packages()}


def test_minima__are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, minimum in MINIMA.items():
        assert f'"{name}>={minimum}"' in text
    assert f'requires-python = ">={PYTHON[0]}.{PYTHON[1]}"' in text


def test_check_python__version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in check_python()] == ["ok"]
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    (check,) = check_python()
    assert check.status == "fail" and "3.9.18" in check.message and check.fix == "python3.10 -m venv .venv"


@pytest.mark.parametrize(
    ("version", "status"), [("2.8.0", "ok"), ("2.8", "ok"), ("2.10.1+local.1", "ok"), ("3.0.0rc1", "ok"),
                            ("2.7.9", "fail"), (None, "fail")],
)  # fmt: skip
def test_check_packages__nnunet(version: str | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = _versions(monkeypatch, nnunetv2=version)
    assert checks["nnunetv2"].status == status
    assert checks["nnunetv2"].fix == (None if status == "ok" else 'pip install "nnunetv2>=2.8"')
    assert {check.status for name, check in checks.items() if name != "nnunetv2"} == {"ok"}


def test_check_packages__not_installed_but_used(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = _versions(monkeypatch, nnssl=None, torch="2.3.1+cu121", dynamic_network_architectures="0.4.3")
    assert checks["nnssl"].status == "warn" and checks["nnssl"].fix == f"pip install -e {ROOT}"
    assert checks["torch"].status == "fail" and "2.3.1+cu121 is too old" in checks["torch"].message
    assert checks["dynamic-network-architectures"].status == "fail"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of ours, and a PATH, without anything of the other project."""
    folder = tmp_path / "site packages" / "nnssl"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nnssl, "__file__", str(folder / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return folder


def test_check_other_package__no_trace(package: Path) -> None:
    assert [check.status for check in check_other_package()] == ["ok"]


def test_check_other_package__our_source_has_none_of_its_names() -> None:
    assert not {path.name for path in (ROOT / "nnssl").iterdir()} & set(OTHERS_FILES)


def test_check_other_package__files_mixed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "ssl_data").mkdir()
    (package / "configuration.py").touch()
    monkeypatch.delattr(nnssl, "__version__")  # theirs has none
    (check,) = check_other_package()
    assert check.status == "fail" and "configuration.py, ssl_data, __init__.py" in check.message
    assert check.fix is not None and f"rm -rf '{package}/configuration.py' '{package}/ssl_data'" in check.fix


def test_check_other_package__commands_on_path(package: Path, tmp_path: Path) -> None:
    command = tmp_path / "nnssl_train"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    (check,) = check_other_package()
    assert check.status == "warn" and str(command) in check.message and check.fix is not None


def test_check_other_package__which_command_wins(package: Path, tmp_path: Path) -> None:
    command = tmp_path / "nnssl_plan_and_preprocess"
    command.write_text("from nnssl.cli.plan_and_preprocess import main\n")
    command.chmod(0o755)
    assert [check.status for check in check_other_package()] == ["ok"]
    command.write_text(
        "from nnssl.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry"
    )
    (check,) = check_other_package()
    assert check.status == "warn" and f"nnssl_plan_and_preprocess is theirs: {command}" in check.message


def test_check_other_package__pip_has_replaced_ours(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [SimpleNamespace(name=name) for name in ("nnssl_plan_and_preprocess", *OTHERS_COMMANDS)]
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(entry_points=commands))
    (check,) = check_other_package()
    assert check.status == "fail" and "pip has replaced ours" in check.message and str(package) in check.message
    commands.append(SimpleNamespace(name="nnssl_doctor"))
    assert [check.status for check in check_other_package()] == ["ok"]


def test_check_other_package__both_have_one_command_in_common() -> None:
    ours = set(re.findall(r"^(nnssl_\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert {OURS, SHARED} <= ours and not ours & set(OTHERS_COMMANDS)


def test_check_completion__what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, first in ((lambda name: "3.7", "in the shell"), (_missing, "pip install argcomplete; then ")):
        monkeypatch.setattr(metadata, "version", version)
        (check,) = check_completion()
        assert check.status == "ok" and check.message.startswith(first) and "nnssl -completion bash" in check.message


def _missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_check_device__cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (check,) = check_device()
    assert check.status == "ok" and f"cpu, {torch.get_num_threads()} threads" in check.message
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    (check,) = check_device()
    assert check.status == "warn" and "sees no card" in check.message and check.fix is not None


def test_check_device__cards(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [SimpleNamespace(name="New", total_memory=80 * 2**30), SimpleNamespace(name="Old", total_memory=11 * 2**30)]
    current = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 0)
    first, second = check_device()
    assert first == Check("device", "ok", "cuda:0 New, 80 GiB, bf16")
    assert second.status == "ok" and re.search("cuda:1 Old, 11 GiB, no bf16", second.message)


@pytest.mark.parametrize("error", [ImportError("no\nlibrary"), OSError("libcudart.so.12: cannot open")])
def test_check_device__torch_cannot_be_imported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def no_torch(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "torch":
            raise error
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    (check,) = check_device()
    assert check.status == "fail" and "torch cannot be imported" in check.message and "\n" not in check.message
    assert check.fix == "pip install --force-reinstall torch"

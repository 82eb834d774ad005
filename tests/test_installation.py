"""What pip puts in place: nnU-Net finds our trainers in a fresh environment in which only its three folders are set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.installation.trainers import trainer_names

ROOT = Path(__file__).resolve().parent.parent
START_UP = ROOT / "nnssl_trainers.pth"
SHOW = ("import os, sys; print(os.environ.get('nnUNet_extTrainer')); "
        "sys.exit(bool({'nnssl', 'nnssl_trainers', 'nnunetv2'} & sys.modules.keys()))")  # fmt: skip
MINE = """from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_Mine(nnUNetTrainer):
    pass
"""
SEARCH = """import json
import multiprocessing
import os
import sys


def search(names):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return [recursive_find_trainer_class_by_name(name).__name__ for name in names], os.environ["nnUNet_extTrainer"]


if __name__ == "__main__":
    names, mine, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    here = search(names)
    os.environ["nnUNet_extTrainer"] = mine
    multiprocessing.set_start_method("spawn")
    with multiprocessing.Pool(1) as pool:
        there = pool.apply(search, ([*names, "nnUNetTrainer_Mine"],))
    with open(out, "w") as file:
        json.dump([here, there], file)
"""


class Fresh:
    """A virtual environment that sees what is installed here, nnssl apart, and a user's folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        self.bin = self.venv / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self.packages = next(self.venv.glob("lib/python*/site-packages"))
        # Links, since a path file with the folder itself would bring this environment's nnssl along.
        shared = folder / "shared"
        shared.mkdir()
        for site in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
            for item in site.iterdir():
                ours = item.name.lower().lstrip("_").startswith("nnssl")
                if not ours and item.suffix != ".pth" and not (shared / item.name).exists():
                    (shared / item.name).symlink_to(item)
        (self.packages / "shared.pth").write_text(f"{shared}\n")
        self.environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
                            if name in os.environ}  # fmt: skip
        for name in ("raw", "preprocessed", "results"):
            (folder / name).mkdir()
            self.environment[f"nnUNet_{name}"] = str(folder / name)

    def run(self, *command: str, **variables: str) -> str:
        """Standard output of a command of this environment; it must end well and complain of nothing at start-up."""
        done = subprocess.run([str(self.bin / command[0]), *command[1:]], capture_output=True, text=True, check=False,
                              cwd=self.folder, env={**self.environment, **variables})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Error processing line" not in done.stderr
        return done.stdout.strip()

    def pip(self, *arguments: str) -> None:
        """pip without an index: everything is here."""
        self.run("python", "-m", "pip", "--quiet", *arguments, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1",
                 PIP_NO_CACHE_DIR="1", PIP_CONFIG_FILE=os.devnull)  # fmt: skip

    def variable(self, **variables: str) -> str:
        """nnUNet_extTrainer as a process of this environment sees it."""
        return self.run("python", "-c", SHOW, **variables)

    def files(self) -> set[str]:
        """All that lies in it."""
        return {str(file.relative_to(self.venv)) for file in self.venv.rglob("*")}


def test_installation__wheel_and_editable(tmp_path: Path) -> None:
    """Both installations in turn in one environment, each taken away without a trace."""
    pytest.importorskip("pip")
    names = trainer_names(ROOT / "nnssl_trainers")
    assert "nnUNetTrainer_Vox2vecProbe" in names and "nnUNetTrainer_SSLProbe" in names
    fresh = Fresh(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "mine.py").write_text(MINE)
    nothing = fresh.files()
    fresh.run("python", "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('nnssl') is not None)")

    fresh.pip("install", "--no-deps", "--no-build-isolation", "--no-compile", str(ROOT))  # builds and takes a wheel
    _check_wheel(fresh, names, mine)
    fresh.pip("uninstall", "-y", "nnssl")
    assert fresh.files() == nothing and fresh.variable() == "None"

    fresh.pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    _check_editable(fresh, names, mine)
    fresh.pip("uninstall", "-y", "nnssl")
    assert fresh.files() == nothing and fresh.variable() == "None"


def _check_wheel(fresh: Fresh, names: list[str], mine: Path) -> None:
    ours = str(fresh.packages / "nnssl_trainers")
    assert fresh.variable() == fresh.variable(nnUNet_extTrainer="") == fresh.variable(nnUNet_extTrainer=ours) == ours
    assert fresh.variable(nnUNet_extTrainer=f"{ours}/:/b") == f"{ours}/:/b"
    left = fresh.run("python", "-c", "import site; print({'spec', 'folder', 'own', 'importlib'} & set(vars(site)))")
    assert left == "set()"
    stock = fresh.folder / "nnUNetv2_train"  # its process imports nothing of ours where it starts one a card
    stock.write_text("import sys; print(sys.excepthook.func.__module__)")
    assert fresh.run("python", str(stock)) == "nnssl.core.errors"
    script, out = fresh.folder / "search.py", fresh.folder / "found.json"
    script.write_text(SEARCH)
    fresh.run("python", str(script), json.dumps(names), str(mine), str(out))
    here, there = json.loads(out.read_text())
    assert here == [names, ours]
    assert there == [[*names, "nnUNetTrainer_Mine"], f"{mine}:{ours}"]


def _check_editable(fresh: Fresh, names: list[str], mine: Path) -> None:
    ours = str(ROOT / "nnssl_trainers")
    assert fresh.variable() == ours
    assert {path.name for path in fresh.packages.glob("*nnssl*")} == {
        "_nnssl.pth", "nnssl_trainers.pth", next(fresh.packages.glob("nnssl-*.dist-info")).name,
    }  # fmt: skip
    said = fresh.run("nnssl_doctor", nnUNet_extTrainer=str(mine)).splitlines()
    assert f"ok    trainers: nnU-Net finds {', '.join(names)}" in said
    assert f"ok    nnUNet_extTrainer: {mine}:{ours}" in said
    assert said[-1].startswith("0 failed, ")


@pytest.mark.parametrize("own", [None, "", "/a", "/a:", "/a:/b", "{ours}", "{ours}/:/b", "/a:{ours}:/b"])
def test_start_up_line__keeps_the_users_value(own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "nnssl_trainers"
    ours.mkdir()
    (ours / "__init__.py").write_text("raise AssertionError('imported')")
    value = None if own is None else own.format(ours=ours)
    _run_line(monkeypatch, tmp_path, value)
    found = os.environ["nnUNet_extTrainer"]
    if value and str(ours) in value:
        assert found == value
    else:
        assert found == (f"{value}:{ours}" if value else str(ours))


@pytest.mark.parametrize("left_over", [False, True])
def test_start_up_line__does_nothing_without_the_package(
    left_over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_over:  # a folder without modules, which Python takes for a namespace package
        (tmp_path / "nnssl_trainers" / "__pycache__").mkdir(parents=True)
    _run_line(monkeypatch, tmp_path, None)
    assert "nnUNet_extTrainer" not in os.environ
    _run_line(monkeypatch, tmp_path, "/a")
    assert os.environ["nnUNet_extTrainer"] == "/a"


def _run_line(monkeypatch: pytest.MonkeyPatch, path: Path, value: str | None) -> None:
    """The lines as Python's `site` runs them, in an environment that consists of `path`."""
    monkeypatch.setattr(sys, "path", [str(path)])
    monkeypatch.delitem(sys.modules, "nnssl_trainers", raising=False)
    if value is None:
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    else:
        monkeypatch.setenv("nnUNet_extTrainer", value)
    lines = START_UP.read_text().splitlines()
    assert all(line.startswith("import ") for line in lines)  # Python skips all else
    for line in lines:
        exec(line, {}, {})

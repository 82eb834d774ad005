"""Renews the golden net: `make golden`, or `python -m tests.golden.record [KIND ...]`; prints what moved.

Values that agree with the old ones within the tolerance stay as they are, so that a diff shows what changed. A commit
that renews the net says why: it is what tells a change that is meant from one that is not.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.golden.compare import differences, renewed
from tests.golden.entries import KINDS
from tests.golden.world import World

FOLDER = Path(__file__).parent / "recorded"
_PACKAGES = ("torch", "nnunetv2", "dynamic-network-architectures", "numpy", "scipy", "monai", "onnx", "onnxscript",
             "onnxruntime")  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """Entries of a kind as they were recorded; none where there is no file."""
    file = FOLDER / f"{name}.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def versions() -> dict[str, str]:
    """What the values depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write(name: str, content: dict[str, Any]) -> None:
    """Replace the file of a kind."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def main(chosen: list[str]) -> None:
    """Record the kinds that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for name in chosen or KINDS:
            kind, before = KINDS[name], read(name)
            now = {entry: kind.record(world, entry) for entry in kind.names()}
            for line in differences(before, now, name) if before else [f"{name}: {len(now)} entries are new"]:
                print(line)
            write(name, renewed(before, now, name))
    write("versions", versions())


if __name__ == "__main__":
    main(sys.argv[1:])

from __future__ import annotations

import errno
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nnssl.checkpoints import files as checkpoint
from nnssl.checkpoints.files import load_checkpoint, load_content, save_checkpoint
from nnssl.core.errors import UserError
from nnssl.core.files import remove_leftovers

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from nnssl.checkpoints import files

def die(handle):
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = die
files.save_checkpoint({"step": 2, "weights": torch.zeros(1000)}, Path(sys.argv[1]))
"""


def test_save_checkpoint__there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"step": 1, "weights": {"a": torch.arange(3.0)}, "plans": {"x": [1, None, "y"]}}, path)
    content = load_content(path)
    assert content["step"] == 1 and content["plans"] == {"x": [1, None, "y"]}
    assert torch.equal(content["weights"]["a"], torch.arange(3.0))
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_save_checkpoint__a_kill_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"step": 1}, path)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2, "the process was killed before it wrote anything"
    assert load_content(path)["step"] == 1
    remove_leftovers(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_save_checkpoint__a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"step": 1}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*checkpoint\.pth"):
        save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert load_content(path)["step"] == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_save_checkpoint__torch_on_a_device_without_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "replacing", lambda path: nullcontext(Path("/dev/full")))
    with pytest.raises(OSError) as caught:
        save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "checkpoint.pth")
    assert caught.value.errno == errno.ENOSPC  # torch's zip writer raises a RuntimeError without a reason


def test_load_checkpoint__what_is_not_ours_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="no checkpoint of nnssl, or it is damaged"):
        load_checkpoint(tmp_path / "text.pth")
    (tmp_path / "empty.pth").touch()
    save_checkpoint({"weights": torch.arange(100_000)}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "flipped.pth").write_bytes(whole[:150_000] + bytes([whole[150_000] ^ 1]) + whole[150_001:])
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("empty", "cut", "flipped"):
        with pytest.raises(UserError, match="no checkpoint of nnssl, or it is damaged"):
            load_checkpoint(tmp_path / f"{name}.pth")
    torch.save({"network_weights": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a checkpoint of nnssl"):
        load_checkpoint(tmp_path / "other.pth")
    torch.save({"format": 1, "code": Path("x")}, tmp_path / "object.pth")
    with pytest.raises(UserError, match="no checkpoint of nnssl, or it is damaged"):
        load_checkpoint(tmp_path / "object.pth")

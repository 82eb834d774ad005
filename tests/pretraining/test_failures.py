"""Runs that the system ends, or refuses something: one sentence each, with the path and what to type."""

from __future__ import annotations

import builtins
import errno
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnssl.checkpoints import files as checkpoint
from nnssl.checkpoints.files import FINAL, LATEST, load_checkpoint
from nnssl.core.errors import UserError
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining import reporting
from nnssl.pretraining.launch import _wait_for, in_sentences, launch
from nnssl.pretraining.metrics import Row, read_rows
from nnssl.pretraining.setup import Setup
from tests.runs import make_setup


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Two epochs of three steps, each saved."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return make_setup(tmp_path, save_every_epochs=1)


def after(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Do something once when that many steps are done."""
    after_step = Vox2vec.after_step

    def acting(self: Vox2vec, done: int) -> None:
        after_step(self, done)
        if done + 1 == step:
            act()

    monkeypatch.setattr(Vox2vec, "after_step", acting)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, ending: str) -> None:
    """The system takes nothing more for files of this name."""
    real = os.replace

    def refusing(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(os, "replace", refusing)


@pytest.mark.parametrize(
    ("number", "file"), [(errno.ENOSPC, LATEST), (errno.EIO, "metrics.jsonl"), (errno.EROFS, "summary.json")]
)
def test_run__what_cannot_be_saved_ends_it_and_the_last_checkpoint_stays(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, number: int, file: str
) -> None:
    after(monkeypatch, 5, lambda: refuse(monkeypatch, number, file))
    with pytest.raises(UserError, match=rf"{file}.*--c$") as caught:
        launch(setup, "cpu", 1)
    assert str(setup.folder) in str(caught.value)
    assert load_checkpoint(setup.folder / LATEST)["epoch"] == (2 if file == "summary.json" else 1)
    assert not list(setup.folder.glob("*.writing"))
    assert str(caught.value) in (setup.folder / "pretraining_log.txt").read_text()


def test_run__a_deleted_folder(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    after(monkeypatch, 4, lambda: shutil.rmtree(setup.folder))
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing.*--c$"):
        launch(setup, "cpu", 1)
    assert not setup.folder.exists()


def test_run__goes_on_without_pictures_trackers_and_log(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        name = "TensorBoard"

        def log(self, row: Row) -> None:
            raise OSError(errno.ENOSPC, "full", "/x/events")

        def close(self, failed: bool) -> None:
            raise AssertionError("it is left out by then")

    def full(self: logging.FileHandler, record: logging.LogRecord) -> None:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            self.handleError(record)

    monkeypatch.setattr(reporting, "open_trackers", lambda *_: [Broken()])
    monkeypatch.setattr(logging.FileHandler, "emit", full)
    refuse(monkeypatch, errno.ENOSPC, ".png")
    with caplog.at_level(logging.WARNING, logger="nnssl"):
        launch(setup, "cpu", 1)
    assert load_checkpoint(setup.folder / FINAL)["epoch"] == 2
    assert [row["epoch"] for row in read_rows(setup.folder / "metrics.jsonl")] == [1, 2]
    said = caplog.text
    assert "views.png is left out" in said and said.count("progress.png is left out") == 2
    assert said.count("TensorBoard is left out") == 1
    err = capsys.readouterr().err
    assert err.count("the log misses lines") == 1 and "Traceback" not in err


@pytest.mark.parametrize(("number", "said"), [(errno.ENOENT, "is missing"), (errno.EIO, "cannot be reached")])
def test_run__a_volume_that_is_not_there_is_not_called_damaged(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    images = setup.train.folders[0].images
    if number == errno.ENOENT:
        images.rename(images.with_name("unmounted"))
    else:  # blosc2 does not say why it cannot read
        for file in images.iterdir():
            file.write_bytes(file.read_bytes()[:300])
        opened = builtins.open

        def lost(file: Any, *given: Any, **named: Any) -> Any:
            if str(file).endswith(".b2nd"):
                raise OSError(number, os.strerror(number), str(file))
            return opened(file, *given, **named)

        monkeypatch.setattr(builtins, "open", lost)
    with pytest.raises(UserError, match=rf"Dataset500_Test/case_\d: .*case_\d\.b2nd {said}.*--c$") as caught:
        launch(setup, "cpu", 1)
    assert "delete" not in str(caught.value).replace("deleted", "")


def test_run__a_killed_loader_worker(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")

    def kill() -> None:
        os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)

    after(monkeypatch, 2, kill)
    with pytest.raises(UserError, match=r"a loader process was killed.*nnUNet_n_proc_DA=1.*--c$"):
        launch(setup, "cpu", 1)
    assert not multiprocessing.active_children()


def test_in_sentences__other_processes_and_memory(setup: Setup) -> None:
    bus = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. ")
    for error, said in (
        (bus, "/dev/shm"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "another process"),
        (RuntimeError("received 0 items of ancillary data"), "ulimit -n"),
        (MemoryError(), "not enough memory"),
    ):
        with pytest.raises(UserError, match=said), in_sentences(setup):
            raise error
    with pytest.raises(RuntimeError, match="a bug"), in_sentences(setup):
        raise RuntimeError("a bug")


def test_wait_for__exit_codes_of_those_that_fail_by_themselves() -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=os._exit, args=(0,)),
        context.Process(target=signal.raise_signal, args=(signal.SIGKILL,)),
        context.Process(target=os._exit, args=(64,)),
    ]
    for process in processes:
        process.start()
    assert _wait_for(processes) == {1: -9, 2: 64}


def test_save_checkpoint__names_the_file_and_not_its_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        checkpoint.save_checkpoint({}, tmp_path / "gone" / LATEST)
    assert caught.value.filename == str(tmp_path / "gone" / LATEST)

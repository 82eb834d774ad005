"""A run's folder: its name, who may write there, and which checkpoint in it a run goes on from."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.checkpoints.files import BEST, FINAL, LATEST, NNUNET_WEIGHTS, check_entries, load_checkpoint, load_content
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, remove_leftovers, write_json
from nnssl.core.lock import REQUEUE_S, Lock
from nnssl.core.own_files import RunFile
from nnssl.core.system import is_first_started, unreadable

CONFIG = "config.json"  # of a run, written before it begins
WARNINGS = "warnings"  # its entry: sentences

log = logging.getLogger("nnssl")


def run_folder(results: Path, dataset: str, method: str, plans_name: str, configuration: str, fold: str) -> Path:
    """The folder of a run: beside nnU-Net's own models of the dataset."""
    return results / dataset / f"nnssl_{method}__{plans_name}__{configuration}" / f"fold_{fold}"


@dataclass(frozen=True)
class Claim:
    """The right to write to a run's folder; can be handed to a process that was started for the run.

    Args:
        folder: of the run.
        lock: the file that says who writes there.
        token: what it says of the run that has this claim.
    """

    folder: Path
    lock: Path
    token: str

    def check(self) -> None:
        """Make sure that the claim still holds before something is written.

        Raises:
            UserError: another run has taken the folder, since this one seemed to be dead; names it.
        """
        holder = Lock(self.lock, str(self.folder)).holder()
        if holder is not None and holder.token != self.token:
            raise UserError(f"{self.folder} was taken over by {holder}, since this run gave no sign of life for two "
                            f"minutes; this one ends here, so that their files are not mixed")  # fmt: skip


def lock_of(folder: Path) -> Lock:
    """The lock of whoever writes to a run's folder, which may not exist yet."""
    return Lock(folder.with_name(f".{folder.name}.lock"), f"the run in {folder}")


@contextlib.contextmanager
def claimed(folder: Path, patient: bool) -> Iterator[Claim]:
    """Hold a run's folder, which may not exist yet; what was made for that and is not used is removed.

    Args:
        folder: of the run.
        patient: whether to wait for a run that is about to end, as one that goes on in its place does.

    Raises:
        UserError: another run holds it; names it.
        OSError: its parent cannot be written to.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(folder)
    try:
        lock.acquire(REQUEUE_S if patient else 0.0, log.info)
        with lock:
            holder = lock.holder()
            yield Claim(folder, lock.path, holder.token if holder else "")
    finally:
        for parent in missing:  # the innermost one first
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def held(folder: Path, continue_run: bool, overwrite: bool) -> Iterator[Claim | None]:
    """`claimed` for the process that writes; None for others, and for a finished run, which may be read-only."""
    finished = (folder / FINAL).is_file() and not overwrite
    if not is_first_started() or (finished and not (continue_run and not (folder / NNUNET_WEIGHTS).is_file())):
        yield None
        return
    with claimed(folder, patient=continue_run) as claim:
        yield claim


def open_folder(
    folder: Path, anew: bool, described: Mapping[str, Any], plans: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> None:
    """Make a run's folder with the files that say what the run is.

    Args:
        folder: of the run; what killed processes left half-written there is removed.
        anew: whether to remove all of an earlier run.
        described: content of `config.json`.
        plans: content of `plans.json`.
        dataset_json: content of `dataset.json`.

    Raises:
        UserError: as `refuse_other_folder`; hours may have passed since it was asked.
    """
    if anew and folder.is_dir():
        refuse_other_folder(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for name, content in ((CONFIG, described), ("plans.json", plans), ("dataset.json", dataset_json)):
        write_json(folder / name, content)


def earlier_warnings(folder: Path) -> list[str]:
    """What a run was warned of before its first step; nothing where that is not known, which must not end a run."""
    try:
        return list(read_json(folder / CONFIG, RunFile).get(WARNINGS, []))
    except UserError:
        return []


class Stored:
    """A checkpoint to start from, read once in a process; another process gets its path and reads it there.

    Args:
        path: of the file.
        content: of the file, where it is read already.
    """

    def __init__(self, path: Path, content: dict[str, Any] | None = None) -> None:
        self.path, self._content = path, content

    @property
    def content(self) -> dict[str, Any]:
        """All entries, with tensors on the CPU; raises as `load_checkpoint`."""
        if self._content is None:
            self._content = load_checkpoint(self.path)
        return self._content

    def forget(self) -> None:
        """Free the memory; `content` reads the file again."""
        self._content = None

    def __reduce__(self) -> tuple[type[Stored], tuple[Path]]:
        """Pickle the path alone."""
        return Stored, (self.path,)


def check_output(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """Checkpoint to go on from, or None for a new run.

    Raises:
        UserError: the folder holds a run that the request would overwrite, or with `overwrite` something else.
    """
    final, latest = folder / FINAL, folder / LATEST
    if resume and overwrite:
        raise UserError("--c continues a run and --overwrite starts anew; give one of them")
    if resume:
        return final if final.is_file() else latest if latest.is_file() else None
    if overwrite:
        refuse_other_folder(folder)
        return None
    if final.is_file():
        raise UserError(f"{folder} holds a finished run; start anew with --overwrite, or use its {FINAL}")
    if latest.is_file():
        raise UserError(f"{folder} holds an interrupted run; continue it with --c, or start anew with --overwrite")
    return None


def refuse_other_folder(folder: Path) -> None:
    """Raise UserError unless `--overwrite` may remove a folder: that of a run, an empty one, or none.

    What a link points to is never removed.
    """
    fix = "move it away, or remove it yourself"
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and --overwrite removes nothing elsewhere; {fix}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; {fix}")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in (FINAL, LATEST)):
        read_json(folder / CONFIG, RunFile, f"--overwrite removes nothing but runs of nnssl_pretrain; {fix}")


def load_resumed(path: Path) -> Stored:
    """Read the checkpoint that a run goes on from; a damaged one is never passed over in silence.

    Raises:
        UserError: it is damaged; names another checkpoint of the run that is whole, and what to type to go on from it.
        OSError: it cannot be read, which says nothing of its content.
    """
    try:
        content = load_content(path)
    except UserError as error:
        if (refused := unreadable(path)) is not None:
            raise refused from error
        others = [path.with_name(name) for name in (LATEST, BEST) if path.name != name]
        good = next((other for other in others if _step(other) is not None), None)
        if good is None:
            raise UserError(f"{path} is damaged, and the run has no other checkpoint that is whole; restore the file, "
                            f"or start anew with --overwrite") from error  # fmt: skip
        aside = f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.damaged')}"
        if good.name != LATEST:
            aside += f" && cp {shlex.quote(str(good))} {shlex.quote(str(path.with_name(LATEST)))}"
        raise UserError(f"{path} is damaged, but {good.name} beside it is whole (step {_step(good)}); to go on from "
                        f"that one type: {aside}; then continue with --c") from error  # fmt: skip
    return Stored(path, check_entries(content, path, to_continue=True))


def _step(path: Path) -> int | None:
    """Finished steps of a checkpoint that is whole."""
    try:
        return int(load_checkpoint(path)["step"])
    except (UserError, OSError, KeyError):
        return None

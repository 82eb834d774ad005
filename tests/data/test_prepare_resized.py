from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.data import prepare_resized
from nnssl.data.loader import Cases
from nnssl.data.prepare_resized import ResizedBodies, make_body, prepare_resized_bodies
from nnssl.data.resized import ResizedBody
from nnssl.data.storage import claimed
from nnssl.data.volumes import BloscVolume
from tests.volumes import add_volume, make_folder

LARGEST = (6, 8, 64)
NAMES = ["a", "b", "c"]


@pytest.fixture
def bodies(tmp_path: Path) -> ResizedBodies:
    """Of three volumes, made."""
    folder, rng = make_folder(tmp_path), np.random.default_rng(0)
    for name in NAMES:
        add_volume(folder, name, rng.normal(size=(1, 9, 11, 7)))
    made = ResizedBodies(folder, LARGEST)
    assert set(_prepare(made)) == set(NAMES)
    return made


def _prepare(bodies: ResizedBodies) -> list[str]:
    """Names of the bodies that are made now."""
    done: list[str] = []

    def made(name: str, bodies: ResizedBodies) -> object:
        done.append(name)
        return make_body(name, bodies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_resized, "make_body", made)
        cases = Cases.of([bodies.volumes], [NAMES])
        prepare_resized_bodies((cases, Cases.of([bodies.volumes], [NAMES[:1]])), bodies.largest, 1)
    return done


def _read(bodies: ResizedBodies, name: str) -> np.ndarray:
    return bodies.volumes.open(name).read_resized_body(LARGEST)


def test_prepare__makes_each_body_once_and_says_the_space(
    bodies: ResizedBodies, caplog: pytest.LogCaptureFixture
) -> None:
    assert {file.name for file in bodies.files.iterdir()} == {"a.b2nd", "b.b2nd", "c.b2nd", "records.jsonl"}
    assert {file.name for file in bodies.files.parent.iterdir()} == {
        "nnUNetPlans_3d_fullres", "nnUNetPlans_3d_fullres_body", bodies.files.name}  # fmt: skip
    assert bodies.files.name == "nnUNetPlans_3d_fullres_6x8x64_body"
    caplog.set_level(logging.INFO, "nnssl")
    assert _prepare(bodies) == []
    assert "bodies of 3 volumes resized to at most 6x8x64, 0 of them now" in caplog.text and " GB in " in caplog.text


def _new_volume(bodies: ResizedBodies) -> None:
    add_volume(bodies.volumes, "b", np.ones((1, 10, 11, 7)), np.ones((10, 11, 7), dtype=bool))


def _same_size(bodies: ResizedBodies, home: Path) -> None:
    """Another content of as many bytes: the end of a frame is a fingerprint, which blosc2 does not use."""
    file = home / "b.b2nd"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    ["volume", "volume of the same bytes", "mask of the same bytes", "body of the same bytes", "removed", "cut",
     "without record"],
)  # fmt: skip
def test_prepare__makes_anew_what_is_not_of_the_present_volume(bodies: ResizedBodies, change: str) -> None:
    file, volumes = bodies.files / "b.b2nd", bodies.volumes
    if change == "volume":
        (volumes.images / "b.b2nd").unlink()
        (volumes.bodies / "b.b2nd").unlink()
        _new_volume(bodies)
        with pytest.raises(UserError, match="delete it"):
            _read(bodies, "b")  # a run that is under way
    elif change.endswith("bytes"):
        home = {"volume": volumes.images, "mask": volumes.bodies, "body": bodies.files}[change.split()[0]]
        _same_size(bodies, home)
    elif change == "removed":
        file.unlink()
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        records = bodies.files / "records.jsonl"
        lines = [line for line in records.read_text().split("\n") if line and json.loads(line)["case"] != "b"]
        records.write_text("\n".join(lines) + "\n")
    assert _prepare(bodies) == ["b"] and _prepare(bodies) == []
    assert _read(bodies, "b").shape == (1, 6, 8, 7)


def test_prepare__of_other_plans_or_another_size_are_others(bodies: ResizedBodies) -> None:
    assert _prepare(ResizedBodies(replace(bodies.volumes, settings="others"), LARGEST)) == NAMES
    assert _prepare(ResizedBodies(bodies.volumes, (6, 8, 5))) == NAMES
    assert _prepare(ResizedBodies(bodies.volumes, (6, 8, 5))) == []


def test_prepare__files_that_were_only_copied_are_the_same(bodies: ResizedBodies) -> None:
    for home in (bodies.volumes.images, bodies.volumes.bodies, bodies.files):
        for name in NAMES:
            os.utime(home / f"{name}.b2nd", ns=(1, 1))
    before = (bodies.files / "records.jsonl").stat().st_size
    assert _prepare(bodies) == []
    after = (bodies.files / "records.jsonl").stat().st_size
    assert after > before, "the new times are noted"
    assert _prepare(bodies) == [] and (bodies.files / "records.jsonl").stat().st_size == after


def test_prepare__a_killed_job_leaves_nothing_that_is_trusted(
    bodies: ResizedBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the body was replaced and before its record was written."""
    shutil.rmtree(bodies.files)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_resized, "_record", dies)
    with pytest.raises(KeyboardInterrupt):
        _prepare(bodies)
    monkeypatch.undo()
    assert (bodies.files / "a.b2nd").is_file() and _prepare(bodies) == NAMES


def test_prepare__a_volume_that_changes_while_it_is_read_is_read_again(
    bodies: ResizedBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(bodies.files)
    resize = prepare_resized.resized_body

    def replaced(volume: BloscVolume, largest: tuple[int, int, int]) -> ResizedBody:
        made = resize(volume, largest)
        if volume.case == "b":
            _same_size(bodies, bodies.volumes.images)
        return made

    monkeypatch.setattr(prepare_resized, "resized_body", replaced)
    assert _prepare(bodies) == NAMES
    monkeypatch.undo()
    assert _prepare(bodies) == ["b"] and _prepare(bodies) == []


def test_prepare__a_body_that_another_job_makes_is_waited_for(
    bodies: ResizedBodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bodies.files / "b.b2nd").unlink()
    claim = claimed(bodies.folder, "b")
    assert claim is not None
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        claim.release()

    monkeypatch.setattr("nnssl.data.preprocessing.time.sleep", wait)
    assert _prepare(bodies) == ["b"] and len(waits) == 1


def test_prepare__a_folder_that_can_only_be_read(bodies: ResizedBodies, monkeypatch: pytest.MonkeyPatch) -> None:
    access, home = os.access, str(bodies.files.parent)
    (bodies.files / "b.b2nd").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(home) and access(path, mode))
    with pytest.raises(UserError, match=f"{home} may only be read.*body_size=none"):
        _prepare(bodies)
    monkeypatch.undo()
    assert _prepare(bodies) == ["b"]
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(home) and access(path, mode))
    assert _prepare(bodies) == []


def test_prepare__a_volume_that_cannot_be_read_is_named(bodies: ResizedBodies) -> None:
    (bodies.volumes.images / "b.b2nd").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="Dataset500_Test/b cannot be read"):
        _prepare(bodies)

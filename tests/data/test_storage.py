from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.data import storage
from nnssl.data.storage import done_cases, masked_cases, refuse_older_format, save_body, save_case

IMAGE = np.random.default_rng(0).normal(size=(1, 8, 9, 10)).astype(np.float32)
SEG = np.zeros((1, 8, 9, 10), np.int8)
BODY = np.ones((8, 9, 10), bool)


def _save(folder: Path, case: str = "a") -> None:
    save_case(folder, case, IMAGE, SEG, {"spacing": [1, 1, 1]}, BODY, (8, 8, 8))


def test_save_case__only_nnunet_files_in_its_folder(tmp_path: Path) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = tmp_path / "D" / "plans_3d"
    folder.parent.mkdir()
    _save(folder)
    assert {f.name for f in folder.iterdir()} == {"a.b2nd", "a_seg.b2nd", "a.pkl"}
    assert {f.name for f in folder.parent.iterdir()} == {"plans_3d", "plans_3d_body"}
    assert done_cases(folder) == masked_cases(folder) == {"a"}
    image, seg, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case("a")
    np.testing.assert_array_equal(image[:], IMAGE)
    assert (image.dtype, seg.dtype) == (np.float32, np.int16)
    assert properties == {"spacing": [1, 1, 1]}


def test_save_case__interrupted_leaves_nothing_that_looks_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any number of renames: the case is not done, and doing it again succeeds."""
    stock = storage._replace
    for survive in range(4):
        folder = tmp_path / str(survive) / "plans_3d"
        folder.parent.mkdir()
        count = 0

        def dies(source: Path, target: Path, survive: int = survive) -> None:
            nonlocal count
            if count == survive:
                raise KeyboardInterrupt
            count += 1
            stock(source, target)

        monkeypatch.setattr(storage, "_replace", dies)
        with pytest.raises(KeyboardInterrupt):
            _save(folder)
        assert done_cases(folder) == set()
        monkeypatch.setattr(storage, "_replace", stock)
        _save(folder)
        assert done_cases(folder) == masked_cases(folder) == {"a"}


def test_save_case__leftovers_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "plans_3d"
    leftover = tmp_path / ".writing" / "plans_3d" / "a"
    leftover.mkdir(parents=True)
    (leftover / "a.b2nd").write_bytes(b"half")
    _save(folder)
    assert done_cases(folder) == {"a"}
    assert not (tmp_path / ".writing").exists()


def test_save_case__full_disk_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("Error while creating the NDArray")  # all that blosc2 says

    monkeypatch.setattr(storage, "save_body_mask", fails)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: Usage(10))
    with pytest.raises(OSError, match="o space left") as caught:
        _save(tmp_path / "plans_3d")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: Usage(10**12))
    with pytest.raises(RuntimeError, match="NDArray"):
        _save(tmp_path / "plans_3d")
    assert not list(tmp_path.iterdir())


def test_save_body__alone(tmp_path: Path) -> None:
    save_body(tmp_path / "plans_3d", "a", BODY, IMAGE)
    assert masked_cases(tmp_path / "plans_3d") == {"a"}
    assert done_cases(tmp_path / "plans_3d") == set()


@pytest.mark.parametrize("missing", ["a.b2nd", "a_seg.b2nd", "a.pkl"])
def test_done_cases__needs_all_three(tmp_path: Path, missing: str) -> None:
    _save(tmp_path / "plans_3d")
    (tmp_path / "plans_3d" / missing).unlink()
    assert done_cases(tmp_path / "plans_3d") == set()


def test_refuse_older_format(tmp_path: Path) -> None:
    refuse_older_format(tmp_path / "none")
    (tmp_path / "a.npz").write_text("")
    with pytest.raises(UserError, match="older nnU-Net"):
        refuse_older_format(tmp_path)


def test_write_json__old_or_new_never_half(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "x.json", {"a": object()})
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == {"a": 1}
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_save_case__nothing_outside_of_the_dataset(tmp_path: Path) -> None:
    folder, victim = tmp_path / "D" / "plans_3d", tmp_path / "victim"
    for kept in (folder.parent, victim / "plans_3d" / "a"):
        kept.mkdir(parents=True)
    (victim / "plans_3d" / "a" / "precious.txt").write_text("precious")
    for name in ("../../victim", str(victim), "", "."):
        with pytest.raises(UserError, match="cannot be the name of a case"):
            _save(folder, name)
    (folder.parent / ".writing").symlink_to(victim)
    with pytest.raises(UserError, match="is a link"):
        _save(folder)
    assert (victim / "plans_3d" / "a" / "precious.txt").is_file() and len(list(victim.rglob("*"))) == 3

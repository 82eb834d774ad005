from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from nnssl.core.errors import UserError
from nnssl.data.trusted import only_plain_types, read_nnunet_checkpoint
from tests.foreign_plans import Command

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def _saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_read_nnunet_checkpoint__numbers_of_numpy_are_what_they_were(tmp_path: Path) -> None:
    numbers = [np.float64(0.1), np.float32(-2), np.float16(0.5), np.int64(-3), np.uint8(7), np.bool_(True),
               np.dtype(">f8").type(4), np.float64("nan")]  # fmt: skip
    content = {"logging": {"dice": [numbers, numbers[0]]}, "_best_ema": numbers[0], "network_weights": torch.ones(2),
               "init_args": {"device": torch.device("cuda", 1), "fold": 0, "plans": {"a": [1, 2.5, None, True]}},
               "inference_allowed_mirroring_axes": (0, 1, 2)}  # fmt: skip
    file = _saved(content, tmp_path / "new.pth")
    read = read_nnunet_checkpoint(file)
    for was, now in zip(numbers, read["logging"]["dice"][0], strict=True):
        assert type(now) is type(was) and np.array_equal(now, was, equal_nan=was.dtype.kind == "f")
    assert torch.equal(read.pop("network_weights"), content["network_weights"])
    assert {key: read[key] for key in ("_best_ema", "init_args", "inference_allowed_mirroring_axes")} == {
        key: content[key] for key in ("_best_ema", "init_args", "inference_allowed_mirroring_axes")
    }


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_read_nnunet_checkpoint__numpy_1_and_2(module: str, tmp_path: Path) -> None:
    file = _saved({"_best_ema": np.float64(0.5)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    own = np.float64(0).__reduce__()[0].__module__.encode()
    content = file.read_bytes()
    assert content.count(own) == 1
    file.write_bytes(content.replace(own, module.encode()))
    assert read_nnunet_checkpoint(file)["_best_ema"] == np.float64(0.5)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_read_nnunet_checkpoint__runs_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "called"
    file = _saved({"network_weights": {}, "logging": Command(marker)}, tmp_path / "foreign.pth", **options)
    with pytest.raises(UserError, match=r"foreign.pth is not opened.*it names \w+.system"):
        read_nnunet_checkpoint(file)
    with pytest.raises(UserError, match=r"foreign.pth is not opened"), only_plain_types(file):
        torch.load(file, weights_only=False)  # as nnU-Net does
    assert not marker.exists()
    torch.load(file, weights_only=False)  # or nothing was proven
    assert marker.exists()


@pytest.mark.parametrize("held", [np.zeros(3), np.str_("a"), np.datetime64("2020-01-01"), np.float64, Path("a")])
def test_read_nnunet_checkpoint__refuses_all_else(held: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other.pth is not opened, as that could run code: it (names|holds)"):
        read_nnunet_checkpoint(_saved({"x": held}, tmp_path / "other.pth"))


@pytest.mark.parametrize("dtype", ["O", "V8", "M8[s]", "U1", "i4,O", "c16"])
def test_read_nnunet_checkpoint__types_that_are_no_numbers(dtype: str, tmp_path: Path) -> None:
    class Number:
        def __reduce__(self) -> Any:
            return np.float64(0).__reduce__()[0], (np.dtype(dtype), b"12345678")

    with pytest.raises(UserError, match=r"crafted.pth is not opened.*numpy's type"):
        read_nnunet_checkpoint(_saved({"x": Number()}, tmp_path / "crafted.pth"))


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(100), pickle.dumps([1])])
def test_read_nnunet_checkpoint__damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"cut.pth"):
        read_nnunet_checkpoint(tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"list.pth is no checkpoint of nnU-Net"):
        read_nnunet_checkpoint(_saved([1], tmp_path / "list.pth"))


def test_only_plain_types__leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the user's, which PyTorch does not take beside ours
    before = get_safe_globals()
    add_safe_globals([np.dtype])
    try:
        allowed = set(get_safe_globals())
        file = _saved({"x": np.float64(1)}, tmp_path / "checkpoint.pth")
        for _ in range(2):
            assert read_nnunet_checkpoint(file) == {"x": 1.0}
            with pytest.raises(ZeroDivisionError), only_plain_types(file):
                assert os.environ[FORCE] == "1"
                _ = 1 / 0
            assert FORCE not in os.environ and os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
            assert set(get_safe_globals()) == allowed
    finally:
        clear_safe_globals()
        add_safe_globals(before)

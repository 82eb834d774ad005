from __future__ import annotations

import argparse
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.interchange.family import Window, without_prefixes
from nnssl.interchange.opening import opened
from tests.foreign_plans import Command
from tests.interchange.files import saved

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


def _same(tensors: Any, expected: dict[str, Tensor] = STATE) -> bool:
    return list(tensors) == list(expected) and all(torch.equal(tensors[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    ("content", "container"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, "state_dict"),
        ({"optimizer": {"state": {0: torch.ones(1)}}, "net": STATE}, "net"),
        ({"model": {"state_dict": STATE, "config": {}}, "epoch": 1}, "model.state_dict"),
        ({**STATE, "epoch": 1}, ""),
    ],
)
def test_opened__finds_the_tensors_whatever_the_file_is_called(
    content: dict[str, Any], container: str, tmp_path: Path
) -> None:
    file = saved(content, tmp_path / "weights.zip")
    with opened(file) as found:
        assert _same(found.tensors) and found.container == container
        assert "epoch" in found.rest or "epoch" not in content
        assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_opened__a_folder_with_one_file_of_weights(tmp_path: Path) -> None:
    saved(STATE, tmp_path / "hub" / "pytorch_model.bin")
    (tmp_path / "hub" / "README.md").write_text("weights")
    (tmp_path / "hub" / "config.json").write_text('{"license": "mit"}')
    with opened(tmp_path / "hub") as found:
        assert _same(found.tensors) and found.beside == {"config.json": {"license": "mit"}}
    saved(STATE, tmp_path / "hub" / "other.pt")
    with pytest.raises(UserError, match=r"holds 2 files of weights.*other.pt"), opened(tmp_path / "hub"):
        pass


def test_opened__safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "weights.pt", metadata={"license": "mit"})
    with opened(tmp_path / "weights.pt") as found:
        assert _same({k: found.tensors[k] for k in STATE}) and found.beside["__metadata__"] == {"license": "mit"}
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"), opened(tmp_path / "weights.pt"):
        pass


def test_opened__runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    file = saved({"state_dict": STATE, "hook": Command(marker)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad.pt is not opened.*it names \w+.system.*state_dict alone"), opened(file):
        pass
    assert not marker.exists()


def test_opened__an_archive_stays_in_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("../../outside.json", "{}")
        archive.writestr("m/fold_0/checkpoint_final.pth", saved(STATE, tmp_path / "w").read_bytes())
    with opened(tmp_path / "model.zip") as found:
        assert _same(found.tensors) and found.file == "m/fold_0/checkpoint_final.pth"
    assert not list(tmp_path.rglob("outside.json")) and not (tmp_path.parent / "outside.json").exists()


def test_opened__archives_of_macos_and_of_several_models(tmp_path: Path) -> None:
    whole = saved(STATE, tmp_path / "w").read_bytes()
    for folders in (("m/a",), ("m/a", "m/b")):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            archive.writestr("__MACOSX/m/._checkpoint_final.pth", b"attributes")
            for folder in folders:
                archive.writestr(f"{folder}/fold_0/checkpoint_final.pth", whole)
        if len(folders) == 1:
            with opened(tmp_path / "model.zip") as found:
                assert _same(found.tensors)
    said = r"model.zip holds 2 files of weights \(a/fold_0/\S+, b/fold_0/\S+\); unpack it"
    with pytest.raises(UserError, match=said), opened(tmp_path / "model.zip"):
        pass


@pytest.mark.parametrize("outer", [False, True])
def test_opened__a_changed_byte_is_found(outer: bool, tmp_path: Path) -> None:
    file = saved({"a": torch.full((1000,), 1.5)}, tmp_path / "w")
    if outer:
        with zipfile.ZipFile(tmp_path / "z", "w") as archive:
            archive.write(file, "fold_0/checkpoint_final.pth")
        file = tmp_path / "z"
    content = bytearray(file.read_bytes())
    content[content.index(b"\0\0\xc0\x3f" * 10)] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="copy it again"), opened(file):
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"PK\x03\x04 cut", "is damaged"),
        (b"\x80\x02}q", "cannot be read"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{cut", "is damaged"),
    ],
)
def test_opened__what_is_no_weights_is_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"w.pth.*{said}"), opened(tmp_path / "w.pth"):
        pass


def test_opened__without_named_tensors(tmp_path: Path) -> None:
    for content, said in (([1], "holds list"), ({"epoch": 3, "optimizer": {}}, "holds epoch, optimizer")):
        with pytest.raises(UserError, match=said), opened(saved(content, tmp_path / "w.pt")):
            pass
    with pytest.raises(UserError, match="there is no file or folder"), opened(tmp_path / "nothing"):
        pass


def test_without_prefixes__however_often_they_come() -> None:
    state = {f"module.backbone.module.{k}": v for k, v in STATE.items()} | {"head.weight": torch.ones(1)}
    assert list(without_prefixes(state, "module.", "backbone.")) == ["a.weight", "a.bias", "head.weight"]
    both = without_prefixes({"module.a": torch.ones(1), "a": torch.zeros(1)}, "module.")
    assert len(both) == 2


@pytest.mark.parametrize(("low", "high", "to"), [(-175.0, 250.0, (0.0, 1.0)), (-1000.0, 1000.0, (-1.0, 1.0))])
def test_window__nnunets_ct_normalisation_gives_its_range(low: float, high: float, to: tuple[float, float]) -> None:
    import numpy as np
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    image = np.array([low - 100, low, (low + high) / 2, high, high + 100], dtype=np.float32)
    found = CTNormalization(False, Window(low, high, to).properties()).run(image)
    np.testing.assert_allclose(found, [to[0], to[0], sum(to) / 2, to[1], to[1]], atol=1e-6)

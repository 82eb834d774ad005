from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.loader import Cases
from nnssl.data.records import write_withdrawn
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.options import to_plain
from nnssl.methods.registry import get_method
from nnssl.pretraining import request as module
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.request import Request, check_same_run


def _request(**changes: Any) -> Request:
    asked: dict[str, Any] = {
        "dataset_ids": [1], "method": "vox2vec", "configuration": "3d_fullres", "plans": "nnUNetPlans", "fold": "all",
        "device": "cpu", "num_gpus": 1, "continue_run": False, "overwrite": False, "options": (), "pretrained": None,
        "num_processes": None, "alignment": None, "probe": None, "probe_every": None, "allow_other_intensities": False,
    }  # fmt: skip
    return Request(**(asked | changes))


def test_probe__may_be_of_another_modality_where_the_request_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(module, "prepare_probe", lambda *arguments: asked.append(arguments[-1]))
    for allowed in (False, True):
        _request(probe=17, allow_other_intensities=allowed)._probe(SimpleNamespace())  # type: ignore[arg-type]
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "vox3vec"}, "vox3vec.*choose one of"),
        ({"options": ["epochs=3"]}, "epochs"),
        ({"fold": "../1"}, "-f"),
        ({"pretrained": "x.pth", "continue_run": True}, "-pretrained starts a new one"),
        ({"alignment": "x.pth"}, "-alignment is for methods that pair volumes"),
        ({"probe_every": 3}, "-probe 17"),
    ],
)
def test_check__refuses_before_anything_is_read(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        _request(**changes).check()


def _folder(home: Path) -> VolumeFolder:
    return VolumeFolder(home.name, home / "data", home / "data_body", (1.0, 1.0, 1.0), ())


def _setup(folder: VolumeFolder, train: list[str], val: list[str]) -> Any:
    streams = {"train": Cases.of([folder], [train]), "val": Cases.of([folder], [val])}
    return SimpleNamespace(plans={}, **streams)


@pytest.mark.parametrize("withdrawn", [True, False])
def test_check_same_run__other_volumes(tmp_path: Path, withdrawn: bool) -> None:
    home = tmp_path / "Dataset500_X"
    setup, path = _setup(_folder(home), ["a", "c"], ["d"]), Path("fold_all/checkpoint_latest.pth")
    checkpoint = {"plans": {}, "train_cases": [f"Dataset500_X/{c}" for c in "abc"], "val_cases": ["Dataset500_X/d"]}
    if withdrawn:
        home.mkdir()
        write_withdrawn(home, {"b", "x"})
    with pytest.raises(UserError) as caught:
        check_same_run(setup, Stored(path, checkpoint))
    said = str(caught.value)
    assert "--overwrite" in said and str(path) in said
    assert ("Dataset500_X/b are gone" in said and "-pretrained" in said) == withdrawn and "Dataset500_X/x" not in said


def test_config__a_run_goes_on_with_other_memory_options_only() -> None:
    begun = get_method("mae").config_class(batch_size=4)
    older = {k: v for k, v in to_plain(begun).items() if k not in ("accumulate", "checkpoint_activations")}
    stored = Stored(Path("checkpoint_latest.pth"), {"config": older})
    asked = _request(method="mae", continue_run=True, options=["accumulate=2", "checkpoint_activations=true"])
    assert asked._config(stored) == replace(begun, accumulate=2, checkpoint_activations=True)
    assert _request(method="mae", continue_run=True)._config(stored) == begun
    with pytest.raises(UserError, match=r"batch_size \(4 -> 2\); leave"):
        _request(method="mae", continue_run=True, options=["accumulate=2", "batch_size=2"])._config(stored)

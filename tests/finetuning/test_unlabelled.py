from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.core.errors import UserError
from nnssl.finetuning.unlabelled import WithUnlabelled, is_unlabelled, prepare_unlabelled, share_of
from tests.finetuning.flare import UNLABELLED, read_plans
from tests.finetuning.half_annotated import NAME, PLANS, SHAPE, SPACING
from tests.phantoms import write_volume


def _prepare(root: Path, said: list[str] | None = None, **options: Any) -> Any:
    plans = options.pop("plans", None) or read_plans(root)
    home = root / "preprocessed" / NAME
    return prepare_unlabelled(plans, "3d_fullres", home, True, ([] if said is None else said).append, **options)


def test_prepare_unlabelled__as_the_labelled_cases_in_a_folder_of_its_own(flare: Path) -> None:
    home = flare / "preprocessed" / NAME
    stock = f"{PLANS}_3d_fullres"
    before = {file.name: file.read_bytes() for file in (*home.glob("*.json"), *(home / stock).iterdir())}
    volume = (flare / "raw" / NAME / "imagesTr" / "case_003_0000.nii.gz").read_bytes()
    (flare / "raw" / NAME / "imagesUn" / "same_0000.nii.gz").write_bytes(volume)
    said: list[str] = []
    found = _prepare(flare, said)
    assert found.folder == home / f"{stock}_unlabelled" and found.cases == [*UNLABELLED[:1], "same", "un_1"]
    assert len(said) == 1 and "Preprocessing 3 volumes of imagesUn into" in said[0]
    same = nnUNetDatasetBlosc2(str(found.folder), ["same"]).load_case("same")
    labelled = nnUNetDatasetBlosc2(str(home / stock), ["case_003"]).load_case("case_003")
    assert np.array_equal(same[0][:], labelled[0][:])
    assert not (same[1][:] > 0).any() and "class_locations" not in same[3]
    for name, content in before.items():
        file = home / name if (home / name).is_file() else home / stock / name
        assert file.read_bytes() == content
    assert {file.name for file in (home / stock).iterdir()} <= before.keys()

    again: list[str] = []
    assert _prepare(flare, again) == found and not again  # what is done is kept


def test_prepare_unlabelled__names_what_it_leaves_out(flare: Path) -> None:
    folder = flare / "raw" / NAME / "imagesUn"
    write_volume(folder / "air_0000.nii.gz", np.full(SHAPE, -1000, dtype=np.int16), SPACING)
    (folder / "odd.nii.gz").touch()
    said: list[str] = []
    found = _prepare(flare, said)
    assert found.cases == sorted(UNLABELLED)
    assert any(s.startswith("WARNING: imagesUn/air is left out: ") for s in said)
    assert any("imagesUn/odd is left out: its file odd.nii.gz has no channel number" in s for s in said)


def test_prepare_unlabelled__others_wait_for_the_main_process(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nnssl.finetuning.unlabelled as module

    waits = []

    def instead_of_sleeping(seconds: float) -> None:
        waits.append(seconds)
        _prepare(flare)  # what the main process does meanwhile

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=instead_of_sleeping))  # locks sleep too, in their thread
    home = flare / "preprocessed" / NAME
    found = prepare_unlabelled(read_plans(flare), "3d_fullres", home, False, print)
    assert len(waits) == 1 and found.cases == sorted(UNLABELLED)


def test_prepare_unlabelled__without_images_or_with_other_plans(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _prepare(flare)
    changed = read_plans(flare)
    changed["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(UserError, match=r"_unlabelled were made with other plans \(spacing changed\)"):
        _prepare(flare, plans=changed)
    monkeypatch.delenv("nnUNet_raw")
    assert _prepare(flare) == found  # the raw images may be gone
    monkeypatch.setenv("nnUNet_raw", str(flare / "raw"))
    for file in (flare / "raw" / NAME / "imagesUn").iterdir():
        file.rename(file.with_suffix(".mha"))
    with pytest.raises(UserError, match=r"imagesUn holds no file named like case_0000\.nii\.gz; it holds 2 of"):
        _prepare(flare)
    for file in (flare / "raw" / NAME / "imagesUn").iterdir():
        file.unlink()
    assert _prepare(flare).cases == []


def test_prepare_unlabelled__what_changed_or_is_gone(flare: Path) -> None:
    assert _prepare(flare).cases == sorted(UNLABELLED)
    folder = flare / "raw" / NAME / "imagesUn"
    hu = np.random.default_rng(5).normal(40, 5, SHAPE).astype(np.int16)
    write_volume(folder / "un_1_0000.nii.gz", hu, SPACING)
    (folder / "bad_0000.nii.gz").write_bytes(b"")
    said: list[str] = []
    assert _prepare(flare, said).cases == sorted(UNLABELLED)
    assert "Preprocessing 2 volumes" in said[0] and "1 of them changed" in said[1] and "un_1" in said[1]
    said.clear()
    _prepare(flare, said)  # what cannot be used is tried again when its file changes
    assert len(said) == 1 and said[0].startswith("WARNING: imagesUn/bad is left out")
    (folder / "un_1_0000.nii.gz").unlink()
    assert _prepare(flare).cases == ["case_000"]
    folder.rename(flare / "archived")
    assert _prepare(flare).cases == ["case_000"]


class _Cases:
    def __init__(self, names: list[str]) -> None:
        self.identifiers = names

    def load_case(self, name: str) -> tuple[Any, ...]:
        return f"image {name}", "seg", None, {"spacing": [1, 1, 1]}


@pytest.mark.parametrize(("labelled", "unlabelled", "share"), [(4, 2, 0.5), (4, 12, 0.5), (6, 3, 0.2), (5, 7, 0.9)])
def test_with_unlabelled__share_of_the_identifiers(labelled: int, unlabelled: int, share: float) -> None:
    cases = WithUnlabelled(
        _Cases([f"a{i}" for i in range(labelled)]), _Cases([f"b{i}" for i in range(unlabelled)]), share
    )
    drawn = [is_unlabelled(name) for name in cases.identifiers]
    assert np.mean(drawn) == pytest.approx(share, abs=0.02)
    assert len(set(Counter(name for name in cases.identifiers if is_unlabelled(name)).values())) == 1


def test_with_unlabelled__loads_either_kind() -> None:
    cases = WithUnlabelled(_Cases(["a"]), _Cases(["a", "b"]), 0.5)
    assert set(cases.identifiers) == {"a", "imagesUn/a", "imagesUn/b"}
    image, seg, previous, properties = cases["imagesUn/a"]
    assert (image, seg, previous) == ("image a", "seg", None)
    assert properties["spacing"] == [1, 1, 1] and len(properties["class_locations"][(-1, 0, 1)]) == 0
    assert "class_locations" not in cases["a"][3]


def test_share_of__that_of_the_cases_up_to_a_half() -> None:
    assert share_of(8, 2) == pytest.approx(0.2) and share_of(10, 4000) == 0.5
    assert json.dumps(share_of(1, 1)) == "0.5"

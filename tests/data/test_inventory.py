from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.data.inventory import Inventory, data_folders, named, withdrawn_cases
from nnssl.data.raw import RawCase, RawDataset
from nnssl.data.raw_files import RawFiles
from nnssl.data.records import write_withdrawn


def _case(folder: Path, name: str, there: bool = True) -> RawCase:
    folder.mkdir(exist_ok=True)
    if there:
        (folder / name).touch()
    return RawCase(name, (str(folder / name),))


def _dataset(folder: Path, *cases: RawCase, left_out: str = "") -> RawDataset:
    return RawDataset(
        "D", folder, {"file_ending": ".nii"}, {case.name: case for case in cases}, dict.fromkeys(left_out, "odd"), False
    )


def _volumes(home: Path, folder: str, names: str) -> None:
    (home / folder).mkdir(parents=True)
    for name in names:
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (home / folder / f"{name}{end}").touch()


def test_RawFiles__gone_is_not_hidden(tmp_path: Path) -> None:
    here, gone = _case(tmp_path / "images", "here"), _case(tmp_path / "images", "gone", there=False)
    link = _case(tmp_path / "images", "link", there=False)
    (tmp_path / "images" / "link").symlink_to(tmp_path / "a disk that is away")
    away = RawCase("away", (str(tmp_path / "mount" / "away"),))
    files = RawFiles.of({case.name: case for case in (here, gone, link, away)})
    assert (files.states.keys(), files.gone, files.hidden.keys()) == ({"here"}, {"gone"}, {"link", "away"})


def test_withdrawn_cases__only_while_the_raw_dataset_is_there(tmp_path: Path) -> None:
    home, raw = tmp_path / "home", tmp_path / "raw"
    _volumes(home, "plans_3d", "abc")
    _volumes(home, "others_2d", "bd")
    _volumes(home, "plans_3d_body", "x")
    _volumes(home, "plans_3d_unlabelled", "y")
    _volumes(home, ".writing", "z")
    assert [folder.name for folder in data_folders(home)] == ["others_2d", "plans_3d"]
    a, gone = _case(raw, "a"), _case(raw, "c", there=False)
    dataset = _dataset(raw, a, gone, left_out="b")
    assert withdrawn_cases(home, dataset, RawFiles.of(dataset.cases)) == {"c", "d"}
    (raw / "imagesTr").mkdir()
    (raw / "imagesTr" / "d_0000.mha").touch()  # converted, and dataset.json does not say so
    assert withdrawn_cases(home, dataset, RawFiles.of(dataset.cases)) == {"c"}
    write_withdrawn(home, {"q"})
    for nothing in (_dataset(raw), _dataset(raw, gone)):  # archived, or on a disk that is away
        assert withdrawn_cases(home, nothing, RawFiles.of(nothing.cases)) == {"q"}


@pytest.mark.parametrize(("count", "end"), [(2, "01"), (12, "09 and 2 more")])
def test_named__a_few(count: int, end: str) -> None:
    assert named([f"{i:02d}" for i in range(count)]).endswith(end)


@pytest.mark.parametrize(("volumes", "masks", "ready", "said"), [
    (0, 12, 0, "12 body masks to make, volumes are used as they are"),
    (0, 1, 4, "1 body mask to make, volumes are used as they are, 4 are done"),
    (8, 0, 4, "8 volumes to preprocess, 4 are done"),
    (1, 0, 0, "1 volume to preprocess"),
    (8, 2, 4, "8 volumes to preprocess, 2 body masks to make for volumes that stay as they are, 4 are done"),
    (0, 0, 4, "nothing to preprocess, 4 are done"),
])  # fmt: skip
def test_Inventory_work__tells_masks_from_volumes(volumes: int, masks: int, ready: int, said: str) -> None:
    found = Inventory(ready={f"r{i}" for i in range(ready)}, bodies={f"b{i}" for i in range(masks)})
    assert found.work(volumes) == said

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnssl.errors import UserError
from nnssl.finetuning.pretrained import find_checkpoint, finished_pretrainings, name_of, read_pretrained
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def only(results: Path) -> Path:
    return write_pretraining(results, small_plans(dataset="Dataset500_Source"))


def test_find_checkpoint__takes_the_only_finished_one(results: Path, only: Path) -> None:
    assert find_checkpoint({}, "vox2vec", results) == only
    assert find_checkpoint({}, None, results) == only
    (only.parents[1] / "fold_0").mkdir()
    (only.parents[1] / "fold_0" / "checkpoint_latest.pth").touch()  # an unfinished run does not count
    assert find_checkpoint({}, None, results) == only


def test_find_checkpoint__says_what_to_type_where_there_is_none(results: Path) -> None:
    with pytest.raises(UserError, match=r"no finished pretraining of vox2vec.*nnssl_pretrain -d DATASET -m vox2vec"):
        find_checkpoint({}, "vox2vec", results)


def test_find_checkpoint__another_methods_is_none_of_this_one(results: Path, only: Path) -> None:
    with pytest.raises(UserError, match="no finished pretraining of voco"):
        find_checkpoint({}, "voco", results)


def test_find_checkpoint__lists_several(results: Path, only: Path) -> None:
    other = write_pretraining(results, small_plans(dataset="Dataset501_Other"))
    with pytest.raises(UserError, match="2 finished pretrainings") as error:
        find_checkpoint({}, "vox2vec", results)
    assert f"export nnssl_checkpoint={only}" in str(error.value)
    assert f"export nnssl_checkpoint={other}" in str(error.value)


def test_find_checkpoint__environment_names_a_file_a_folder_or_random(
    results: Path, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_pretraining(results, small_plans(dataset="Dataset501_Other"))
    for value, found in ((other, other), (other.parent, other), ("random", None)):
        monkeypatch.setenv("nnssl_checkpoint", str(value))
        assert find_checkpoint({}, "vox2vec", results) == found
    monkeypatch.setenv("nnssl_checkpoint", "nowhere.pth")
    with pytest.raises(UserError, match=r"nnssl_checkpoint names the checkpoint .*nowhere.pth, which does not exist"):
        find_checkpoint({}, "vox2vec", results)


def test_find_checkpoint__plans_name_it_below_the_results(
    results: Path, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pretraining(results, small_plans(dataset="Dataset501_Other"))
    block = {"checkpoint": name_of(only, results)}
    assert not Path(block["checkpoint"]).is_absolute()
    assert find_checkpoint(block, "vox2vec", results) == only
    moved = results.rename(results.with_name("moved"))
    assert find_checkpoint(block, "vox2vec", moved) == moved / block["checkpoint"]
    monkeypatch.setenv("nnssl_checkpoint", str(moved / block["checkpoint"]))
    assert find_checkpoint(block, "vox2vec", moved) == moved / block["checkpoint"]
    monkeypatch.setenv("nnssl_checkpoint", "random")
    with pytest.raises(UserError, match=r"the plans name .* and nnssl_checkpoint names random; unset it"):
        find_checkpoint(block, "vox2vec", moved)


def test_name_of__keeps_the_full_path_outside_the_results(results: Path, tmp_path: Path) -> None:
    assert name_of(tmp_path / "elsewhere" / "x.pth", results) == str(tmp_path / "elsewhere" / "x.pth")
    assert name_of(None, results) == "random"


def test_read_pretrained__takes_the_backbone_apart_from_the_rest(only: Path) -> None:
    pretrained = read_pretrained(only)
    state = torch.load(only, weights_only=True)["method_state"]
    assert pretrained.method == "vox2vec"
    assert pretrained.levels == "decoder"
    assert {f"backbone.{name}" for name in pretrained.backbone} | pretrained.others.keys() == state.keys()
    assert pretrained.others["head.0.weight"] == state["head.0.weight"].numel()


def test_read_pretrained__of_a_checkpoint_without_orientation(results: Path) -> None:
    path = write_pretraining(results, small_plans(), orientation=None)
    content = torch.load(path, weights_only=True)
    del content["orientation"]
    torch.save(content, path)
    assert read_pretrained(path).orientation is None


def test_finished_pretrainings__of_one_dataset(results: Path, only: Path) -> None:
    other = write_pretraining(results, small_plans(dataset="Dataset501_Other"), fold="0")
    assert finished_pretrainings(results) == [only, other]
    assert finished_pretrainings(results, dataset="Dataset501_Other") == [other]

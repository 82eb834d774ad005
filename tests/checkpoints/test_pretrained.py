from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnssl.checkpoints.pretrained import finished_pretrainings, name_of, read_pretrained
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def only(results: Path) -> Path:
    return write_pretraining(results, small_plans(dataset="Dataset500_Source"))


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

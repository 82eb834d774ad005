from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data.loader import Cases, SampleDataset, Stream, cases_of_step, make_loader, positions_of_rank
from nnssl.methods.vox2vec.method import Vox2vec, Vox2vecConfig
from tests.volumes import add_volume, index_volume, make_folder

STEPS: list[tuple[Stream, int]] = [("train", 0), ("train", 1), ("val", 0), ("train", 2)]


@pytest.fixture
def dataset(tmp_path: Path) -> SampleDataset:
    folder = make_folder(tmp_path)
    for i in range(6):
        add_volume(folder, f"case_{i}", index_volume((10 + i, 14, 12)))
    names = folder.cases()
    config = Vox2vecConfig(batch_size=4, patch_size=(8, 8, 8), voxels_per_pair=20, seed=3)
    return SampleDataset(Vox2vec, config, Cases.of([folder], [names[:5]]), Cases.of([folder], [names[5:]]))


def _batches(dataset: SampleDataset, steps: list[tuple[Stream, int]], positions: range) -> list[Any]:
    return list(make_loader(dataset, steps, positions, torch.device("cpu")))


def test_make_loader__workers_and_interruptions_do_not_matter(
    dataset: SampleDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    alone = _batches(dataset, STEPS, range(4))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    for workers in (alone, _batches(dataset, STEPS, range(4)), alone[:2] + _batches(dataset, STEPS[2:], range(4))):
        for a, b in zip(alone, workers, strict=True):
            assert a.cases == b.cases
            assert a.tensors.keys() == b.tensors.keys()
            assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    assert not torch.equal(alone[0].tensors["crops"], alone[1].tensors["crops"])


def test_make_loader__ranks_share_the_whole_batch(dataset: SampleDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    whole = _batches(dataset, STEPS[:1], positions_of_rank(4, 0, 1))[0]
    parts = [_batches(dataset, STEPS[:1], positions_of_rank(4, r, 2))[0] for r in range(2)]
    assert whole.cases == parts[0].cases + parts[1].cases
    assert torch.equal(whole.tensors["crops"], torch.cat([p.tensors["crops"] for p in parts]))


def test_cases_of_step__every_volume_once_a_turn_and_none_twice_a_step() -> None:
    steps = [cases_of_step(0, "train", s, 4, 22) for s in range(10)]
    assert all(len(set(s.tolist())) == 4 for s in steps)
    first, second = np.concatenate(steps[:5]), np.concatenate(steps[5:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert not np.array_equal(first, second)
    assert not np.array_equal(steps[0], cases_of_step(1, "train", 0, 4, 22))
    np.testing.assert_array_equal(steps[3], cases_of_step(0, "train", 3, 4, 22))


def test_cases_of_step__fewer_volumes_than_the_step_takes() -> None:
    np.testing.assert_array_equal(cases_of_step(0, "train", 0, 5, 2), [0, 1, 0, 1, 0])


def test_cases_of_step__validation_is_the_same_in_every_turn() -> None:
    np.testing.assert_array_equal(cases_of_step(0, "val", 0, 2, 6), cases_of_step(0, "val", 3, 2, 6))


def test_dataset__views_from_one_volume(dataset: SampleDataset) -> None:
    config = Vox2vecConfig(batch_size=4, patch_size=(8, 8, 8), views_from_one_volume=True)
    one = SampleDataset(Vox2vec, config, dataset.cases["train"], dataset.cases["val"])
    assert len({one[("train", 2, i)][0] for i in range(4)}) == 1
    assert len({one[("train", s, 0)][0] for s in range(5)}) == 5

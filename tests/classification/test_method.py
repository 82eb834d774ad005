from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.classification.method import ClassificationConfig, ScanClassification, Values, body_mean
from nnssl.classification.setup import head_of
from nnssl.core.errors import UserError
from nnssl.data.volumes import BloscVolume
from nnssl.networks.build import build_backbone
from tests.classification.data import target_of
from tests.pretrainings import tiny_plans
from tests.runs import fpn_plans
from tests.volumes import add_volume, make_folder


@pytest.fixture
def volume(tmp_path: Path) -> BloscVolume:
    folder = make_folder(tmp_path)
    add_volume(folder, "a", np.random.default_rng(0).random((1, 10, 20, 30)) + 1)
    return folder.open("a", 3)


def _built(classes: int, **options: object) -> ScanClassification:
    torch.manual_seed(0)
    config = ClassificationConfig(patch_size=(8, 16, 16), batch_size=2, **options)  # type: ignore[arg-type]
    values = Values((0.0, 1.0, 1.0, 1.0), (1.0, 0.0), classes)
    return ScanClassification(build_backbone(fpn_plans(), "3d_fullres", "encoder"), config, values)


def test_body_mean__a_cell_counts_as_often_as_it_has_body() -> None:
    cells = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    body = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    body[0, :, 0, 0] = body[0, 0, 2, 2:] = True
    assert body_mean(cells, body).tolist() == [[(0 * 2 + 3 * 2) / 4]]
    assert body_mean(cells, torch.zeros_like(body)).tolist() == [[1.5]]


def test_sample__crops_of_the_body_and_whole_axes(volume: BloscVolume) -> None:
    config = ClassificationConfig(patch_size=(16, 8, 32), batch_size=1)
    for seed in range(5):
        sample = ScanClassification.sample(volume, config, np.random.default_rng(seed))
        assert sample["crop"].shape == (1, 16, 8, 32) and sample["body"].any() and int(sample["index"]) == 3
        inside = sample["crop"][0] != 0
        assert inside.any((1, 2)).sum() == 10 and inside.any((0, 1)).sum() == 30  # all of the axes that fit
        assert not sample["flips"].any()


def test_step__held_out_values_and_no_augmentation_in_evaluation(volume: BloscVolume) -> None:
    method = _built(2, noise_sigma=0.5)
    rng = np.random.default_rng(0)
    batch = method.collate([method.sample(volume, method.config, rng) for _ in range(2)])
    batch["index"] = torch.tensor([0, 1])
    assert not torch.equal(method.train().augment(batch)["crop"], batch["crop"])
    method.eval()
    views = method.augment(batch)
    assert torch.equal(views["crop"], batch["crop"])
    scores = method.head(body_mean(method.backbone(views["crop"])[-1], views["body"]))
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 0]), label_smoothing=0.2)
    assert float(method.step(views).loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert [len(row) for row in method.panels(views, method.config)] == [3, 3]


def test_step__numbers_and_class_weights(volume: BloscVolume) -> None:
    weights = _built(2, class_weights=True).class_weights
    assert weights is not None and weights.tolist() == pytest.approx([2.0, 2 / 3])
    method = _built(0, class_weights=True)
    assert method.class_weights is None and method.head.out_features == 1
    batch = method.collate([method.sample(volume, method.config, np.random.default_rng(0))])
    batch["index"] = torch.tensor([1])
    output = method.step(method.augment(batch))
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_step__parts_of_a_batch_have_the_loss_and_the_gradients_of_all(volume: BloscVolume) -> None:
    made = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        config = ClassificationConfig(patch_size=(16, 16, 16), batch_size=2, dropout=0.0, accumulate=accumulate)
        backbone = build_backbone(tiny_plans(), "3d_fullres", "encoder")  # without batch norm
        made.append(ScanClassification(backbone, config, Values((0.0, 1.0), (1.0, 0.0), 2)))
    whole, parts = made
    batch = whole.collate([whole.sample(volume, whole.config, np.random.default_rng(i)) for i in range(2)])
    batch["index"] = torch.tensor([0, 1])
    for method in made:
        method.train().step(method.augment(batch)).loss.backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-4)  # type: ignore[arg-type]
    assert whole.head.weight.grad is not None


def test_config__impossible_values() -> None:
    for option, value in (("dropout", 1.0), ("patience", 0), ("label_smoothing", -0.1), ("noise_sigma", -1.0)):
        with pytest.raises(UserError, match=option):
            ClassificationConfig(**{option: value})  # type: ignore[arg-type]


def test_standardise__features_of_the_start_have_mean_0_and_deviation_1(volume: BloscVolume) -> None:
    method = _built(2, dropout=0.0).eval()
    rows = torch.randn(50, 16) * torch.linspace(0.5, 2, 16) + 3
    rows[:, 0] = 7.0  # does not vary
    method.standardise(rows)
    seen = (rows - method.centre) / method.spread
    assert torch.allclose(seen.mean(0), torch.zeros(16), atol=1e-4)
    assert seen.std(0, correction=0)[1:].tolist() == pytest.approx([1.0] * 15, abs=1e-4) and not seen[:, 0].any()
    head = head_of(method.state_dict(), target_of([0, 1], ["no", "yes"]), ["c00", "c01"])
    scores = method.head(seen).detach().numpy()
    assert head.scores(rows.numpy()) == pytest.approx(scores - scores.mean(1, keepdims=True), abs=1e-3)


def test_standardise__cases_that_are_all_alike_are_not_blown_up() -> None:
    method = _built(2)
    method.standardise(torch.full((4, 16), 3.0) + 1e-7 * torch.randn(4, 16))
    assert method.centre.tolist() == pytest.approx([3.0] * 16) and method.spread.tolist() == [1.0] * 16

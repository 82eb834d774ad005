from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.checkpoints.files import FINAL, load_checkpoint
from nnssl.methods.base import Batch, StepOutput
from nnssl.methods.lapn.method import Lapn
from nnssl.networks.lapn_unet import LapnPyramid
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.optimisation import build_optimiser
from nnssl.pretraining.weights import load_weights
from tests.methods.lapn_batches import PATCH, lapn_batch, lapn_config, small_fpn
from tests.runs import CPU, make_setup


def _train(method: Lapn, batches: list[Batch], rate: float = 3e-3) -> list[StepOutput]:
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], rate)
    outputs = []
    for step, batch in enumerate(batches):
        outputs.append(method(batch))
        optimiser.zero_grad()
        outputs[-1].loss.backward()
        optimiser.step()
        method.after_step(step)
    return outputs


def _keys(method: Lapn, batch: Batch, view: int = 1) -> Tensor:
    """By whole maps, point by point."""
    networks: Any = method.key_network
    with torch.no_grad():
        maps = networks["heads"]["fine"](networks["backbone"](batch["crops"][:, view]))
    rows = []
    for row in batch["points"][:, view]:
        grid = (2 * row[1:].flip(0) + 1) / torch.tensor(PATCH).flip(0) - 1
        read = F.grid_sample(maps[int(row[0])][None], grid.view(1, 1, 1, 1, 3), padding_mode="border",
                             align_corners=False)  # fmt: skip
        rows.append(F.normalize(read.flatten(), dim=0))
    return torch.stack(rows)


def test_step__fills_the_queue_after_the_loss_with_the_keys_of_the_step(tmp_path: Path) -> None:
    config = lapn_config()
    method = Lapn(small_fpn(), config)
    assert method.queue is not None
    batch = method.augment(lapn_batch(tmp_path, config))
    expected = _keys(method, batch)
    first = method(batch)
    assert first.loss.item() == 0 and first.terms["queue_filled"] == 0  # nothing to compare with yet
    first.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.heads.parameters())
    torch.testing.assert_close(method.queue.vectors[:80], expected, rtol=0, atol=1e-5)
    assert torch.equal(method.queue.places[:80], batch["places"]) and not method.queue.filled()[80:].any()
    second = method(batch)
    assert second.loss > 0 and second.terms["queue_filled"] == pytest.approx(0.8)
    assert method.queue.pointer == 60 and method.queue.filled().all()
    assert torch.equal(method.queue.places[80:], batch["places"][:20])
    torch.testing.assert_close(method.queue.vectors.norm(dim=1), torch.ones(100))


def test_step__compares_with_far_points_of_earlier_steps_only(tmp_path: Path) -> None:
    config = lapn_config(exclude_radius_mm=14.0)
    method = Lapn(small_fpn(), config)
    assert method.queue is not None
    batches = [method.augment(lapn_batch(tmp_path / str(seed), config, seed)) for seed in (0, 1)]
    method(batches[0])
    negatives, places = method.queue.vectors[:80].clone(), method.queue.places[:80].clone()
    loss = method(batches[1]).loss
    keys, here = _keys(method, batches[1]), batches[1]["places"]
    queries = _keys(method, batches[1], 0)  # both networks are still equal, and of batch normalisation too
    distance = (here[:, None, 1:] - places[None, :, 1:]).norm(dim=2)
    near = (distance <= 14) & (here[:, None, 0] == places[None, :, 0])
    assert 0 < near.float().mean() < 0.5
    others = (queries @ negatives.T / 0.07).masked_fill(near, -torch.inf)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True) / 0.07, others], 1)
    expected = F.cross_entropy(logits, torch.zeros(80, dtype=torch.long))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


def test_step__negatives_of_the_batch_need_no_queue(tmp_path: Path) -> None:
    config = lapn_config(negatives="batch", exclude_radius_mm=4.0)
    method = Lapn(small_fpn(), config)
    assert method.queue is None and not any("queue" in name for name in method.state_dict())
    batch = method.augment(lapn_batch(tmp_path, config))
    output = method(batch)
    queries, keys, places = output.embeddings, _keys(method, batch), batch["places"]
    near = ((places[:, None, 1:] - places[None, :, 1:]).norm(dim=2) <= 4) & (places[:, None, 0] == places[:, 0])
    assert near.diagonal().all() and near.float().mean() < 0.5
    others = (queries @ keys.T / 0.07).masked_fill(near, -torch.inf)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True) / 0.07, others], 1)
    expected = F.cross_entropy(logits, torch.zeros(80, dtype=torch.long))
    torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-4, atol=1e-4)


def test_step__symmetric_adds_the_term_with_the_roles_swapped(tmp_path: Path) -> None:
    plain, both = lapn_config(negatives="batch"), lapn_config(negatives="queue", symmetric=True)
    batch = Lapn(small_fpn(), plain).augment(lapn_batch(tmp_path, plain))
    method = Lapn(small_fpn(), both)
    assert method.queue is not None
    method.queue.vectors.copy_(F.normalize(torch.randn(100, 6), dim=1))
    method.queue.places[:, 0] = 99
    state, vectors = method.state_dict(), method.queue.vectors.clone()
    swapped = {**batch, "crops": batch["crops"].flip(1), "points": batch["points"].flip(1)}
    output = method(batch)
    assert output.embeddings.shape == (160, 6)
    one_sided = Lapn(small_fpn(), lapn_config())
    losses = []
    for views in (batch, swapped):
        one_sided.load_state_dict(state)
        assert one_sided.queue is not None
        one_sided.queue.vectors.copy_(vectors)
        one_sided.queue.places[:] = torch.tensor([99.0, 0, 0, 0])
        losses.append(one_sided(views).loss)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"negatives": "batch"}], ids=str)
def test_step__without_points_the_loss_is_an_attached_zero(tmp_path: Path, options: dict[str, Any]) -> None:
    config = lapn_config(**options)
    method = Lapn(small_fpn(), config)
    batch = method.augment(lapn_batch(tmp_path, config))
    method(batch)
    output = method({**batch, "points": batch["points"][:0], "places": batch["places"][:0]})
    output.loss.backward()
    assert output.loss.item() == 0 and all(v.isfinite() for v in output.terms.values())
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters() if p.requires_grad)


def test_step__validation_leaves_the_queue_alone(tmp_path: Path) -> None:
    config = lapn_config()
    method = Lapn(small_fpn(), config)
    batch = method.augment(lapn_batch(tmp_path, config))
    method(batch)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        loss = method.eval()(batch).loss
    assert loss > 0 and all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


@pytest.mark.parametrize("network", ["fpn", "lapn"])
def test_step__overfits_a_batch(tmp_path: Path, network: str) -> None:
    torch.manual_seed(0)
    config = lapn_config(encoding_dim=16, exclude_radius_mm=3.0, key_momentum=0.9)
    method = Lapn(small_fpn() if network == "fpn" else LapnPyramid(1, (8, 12), 1, 16), config)
    batch = method.augment(lapn_batch(tmp_path, config))
    outputs = _train(method, [batch] * 40)
    assert outputs[-1].loss < 0.6 * outputs[2].loss
    assert outputs[-1].terms["similarity"] > 0.5
    assert outputs[-1].terms.keys() == {"similarity", "points", "queue_filled"}


def test_key_network__begins_as_the_student_and_follows_it_without_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = lapn_config(negatives="batch")
    method = Lapn(small_fpn(), config)
    student = {k: v for k, v in method.state_dict().items() if k.startswith(("backbone.", "heads."))}
    before = {k: v.clone() for k, v in method.key_network.state_dict().items()}
    assert before.keys() == student.keys() and all(torch.equal(before[k], v) for k, v in student.items())
    optimised = {id(p) for g in build_optimiser(config, method.parameters()).param_groups for p in g["params"]}
    assert not optimised & {id(p) for p in method.key_network.parameters()}
    _train(method, [method.augment(lapn_batch(tmp_path, config))])
    now, moved = dict(method.named_parameters()), 0
    for name, key in method.key_network.named_parameters():
        assert not key.requires_grad and key.grad is None
        torch.testing.assert_close(key, 0.999 * before[name] + 0.001 * now[name], rtol=1e-6, atol=1e-8)
        moved += not torch.equal(key, before[name])
    assert moved > 10


def test_state__a_run_that_starts_from_another_one_takes_no_queue(tmp_path: Path) -> None:
    first = make_setup(tmp_path / "first", "lapn", num_epochs=1)
    Pretraining(first, CPU).run()
    stored = load_checkpoint(first.folder / FINAL)["method_state"]
    assert (stored["queue.places"][:, 0] >= 0).any()
    method = make_setup(tmp_path / "second", "lapn").build_method()
    assert isinstance(method, Lapn) and method.queue is not None
    load_weights(method, Stored(first.folder / FINAL))
    state = method.state_dict()
    assert not method.queue.filled().any()
    assert all(torch.equal(state[k], v) for k, v in stored.items() if not k.startswith("queue."))
    row = read_rows(first.folder / "metrics.jsonl")[0]
    assert {"similarity", "points", "queue_filled", "val_similarity"} <= row.keys()


def test_state__a_run_that_starts_from_another_method_begins_with_equal_networks(tmp_path: Path) -> None:
    first = make_setup(tmp_path / "first", "vox2vec", num_epochs=1, steps_per_epoch=1)
    Pretraining(first, CPU).run()
    method = make_setup(tmp_path / "second", "lapn").build_method()
    assert isinstance(method, Lapn)
    load_weights(method, Stored(first.folder / FINAL))
    keys, student = method.key_network["backbone"].state_dict(), method.backbone.state_dict()
    assert all(torch.equal(keys[k], v) for k, v in student.items())
    assert torch.equal(student["first_conv.weight"],
                       load_checkpoint(first.folder / FINAL)["method_state"]["backbone.first_conv.weight"])  # fmt: skip

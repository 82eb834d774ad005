from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnssl.networks.contrastive import (
    DinoHead,
    MomentumNetworks,
    l2_normalise,
    momentum_copy,
    projection_head,
    update_momentum,
)
from nnssl.networks.fpn_unet import FPN3d
from tests.networks.helpers import count_parameters, fill_by_rule, input_by_rule, load_reference


def test_projection_head__has_the_published_size() -> None:
    assert count_parameters(projection_head(1008, 1008, 128)) == 2_167_328


def test_projection_head__gives_the_official_vectors() -> None:
    vector = load_reference("arch_vectors.json")["vox2vec.proj_head(6->6->6->3)"]
    output = l2_normalise(fill_by_rule(projection_head(6, 6, 3))(input_by_rule(vector["input"])))
    expected = torch.tensor(vector["out"], dtype=torch.float64)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-7)


def test_projection_head__of_voco_gives_the_official_vectors_in_training_and_evaluation() -> None:
    vector = load_reference("voco.json")["projection_head(6,5,4)"]
    head = fill_by_rule(projection_head(6, 5, 4, batch_statistics=True))
    expected = torch.tensor(vector["out"], dtype=torch.float64)
    for mode in (True, False):  # there are no running statistics
        output = head.train(mode)(input_by_rule(vector["input"]))
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
    assert not list(head.buffers())


def test_projection_head__of_voco_has_the_published_size() -> None:
    assert count_parameters(projection_head(1152, 2048, 2048, batch_statistics=True)) == 10_754_048


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_l2_normalise__zero_stays_zero_with_a_finite_gradient(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    unit = l2_normalise(x)
    expected = torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=unit.dtype)
    torch.testing.assert_close(unit, expected)
    unit[1].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_l2_normalise__gradient_of_a_zero_vector_is_finite() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    l2_normalise(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_dino_head__gives_the_official_vectors() -> None:
    vector = load_reference("alice.json")["arch_vectors"]["alice.DINOHead(6,5,hidden 8,bottleneck 4)"]
    output = fill_by_rule(DinoHead(6, 5, 8, 4))(input_by_rule(vector["input"]))
    torch.testing.assert_close(output, torch.tensor(vector["out"], dtype=torch.float64), rtol=0, atol=1e-9)


def test_dino_head__gives_cosines() -> None:
    head = DinoHead(6, 5, 8, 4)
    output = head(100 * torch.randn(2, 7, 6))
    assert output.shape == (2, 7, 5) and output.abs().max() <= 1 + 1e-6
    published = load_reference("alice.json")["param_counts"]["alice.AliceHead"]["mlp"]
    assert count_parameters(DinoHead(384, 512).mlp) == published


def test_update_momentum__gives_the_reference_values() -> None:
    vector = load_reference("voco.json")["ema"]
    student = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(student.weight, vector["teacher"])
    teacher = momentum_copy(student)
    nn.init.constant_(student.weight, vector["student"])
    for expected in (vector["after_one"], vector["after_two"]):
        update_momentum(teacher, student, vector["momentum"])
        assert abs(teacher.weight.item() - expected) < 1e-9


def test_update_momentum__gives_the_reference_values_after_1000_steps() -> None:
    vector = load_reference("lapn.json")["ema"]
    query = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(query.weight, vector["key"])
    key = momentum_copy(query)
    nn.init.constant_(query.weight, vector["query"])
    update_momentum(key, query, vector["momentum"])
    assert abs(key.weight.item() - vector["after_one"]) < 1e-12
    for _ in range(999):
        update_momentum(key, query, vector["momentum"])
    assert abs(key.weight.item() - vector["after_1000"]) < 1e-9


def test_update_momentum__an_equal_network_stays_as_it_is_and_buffers_are_its_own() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
    follower = momentum_copy(network)
    before = {name: tensor.clone() for name, tensor in follower.state_dict().items()}
    network(torch.randn(4, 5))  # moves the running statistics
    for _ in range(3):
        update_momentum(follower, network, 0.9)
    assert all(torch.equal(before[name], tensor) for name, tensor in follower.state_dict().items())


def test_momentum_copy__has_no_gradients_and_memory_of_its_own() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    follower = momentum_copy(network)
    assert not any(p.requires_grad for p in follower.parameters())
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    assert not any((p == 7).any() for p in follower.parameters())


def test_momentum_copy__shares_what_it_is_told_to() -> None:
    encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 3)
    network = nn.Sequential(encoder, decoder)
    follower = momentum_copy(network, decoder.parameters())
    mine = dict(follower.named_parameters())
    assert mine["1.weight"] is decoder.weight and mine["0.weight"] is not encoder.weight
    assert decoder.weight.requires_grad and not mine["0.weight"].requires_grad
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    shared = decoder.weight.clone()
    update_momentum(follower, network, 0.5)
    assert torch.equal(decoder.weight, shared)
    torch.testing.assert_close(encoder.weight - mine["0.weight"], torch.full((3, 3), 0.5))


def test_momentum_networks__follow_and_become_the_student() -> None:
    backbone, head = FPN3d(1, 4, 2, levels="encoder"), nn.Linear(4, 3)
    followers: Any = MomentumNetworks(backbone, head=head)
    own, theirs = dict(followers["backbone"].named_parameters()), dict(backbone.named_parameters())
    assert all((own[name] is theirs[name]) == name.startswith(backbone.unused) for name in theirs)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *head.parameters()):
            parameter.add_(1)
    student = {"backbone": backbone, "head": head}
    followers.follow(student, 0.75)
    torch.testing.assert_close(head.weight - followers["head"].weight, torch.full((3, 4), 0.75))
    backbone(torch.randn(2, 1, 4, 4, 4))  # moves the running statistics
    followers.become(student)
    for name, network in student.items():
        mine = followers[name].state_dict()
        assert all(torch.equal(mine[k], v) for k, v in network.state_dict().items())
    assert not any(p.requires_grad for p in followers["head"].parameters())

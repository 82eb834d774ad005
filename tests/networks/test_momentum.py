from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnssl.networks.contrastive import MomentumNetworks, momentum_copy, update_momentum
from nnssl.networks.fpn_unet import FPN3d
from tests.networks.helpers import load_reference


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

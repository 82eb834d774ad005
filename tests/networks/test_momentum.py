from __future__ import annotations

import torch
from torch import nn

from nnssl.networks.momentum import momentum_copy, update_momentum
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

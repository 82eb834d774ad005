from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.methods.shared.block_tokens import LightDecoder
from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.lapn_unet import LapnPyramid
from nnssl.networks.nnformer import NNFormerPyramid
from nnssl.networks.pimpic_unet import Pimpic3d
from nnssl.networks.primus import Primus
from nnssl.networks.pyramid import BlockMask
from nnssl.networks.recompute import recompute_activations
from nnssl.networks.segresnet import SegResNetDSPyramid, SegResNetPyramid
from nnssl.networks.stunet import STUNetPyramid
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.unet3d import UNet3DPyramid
from nnssl.networks.vit import ViTPyramid
from tests.networks.helpers import unet_configuration

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
PRIMUS: dict[str, Any] = {"strides": [[1, 1, 1], [8, 8, 8]], "input_shape": (16, 16, 32), "embed_dim": 24,
                          "eva_depth": 2, "eva_numheads": 2, "drop_path_rate": 0.5}  # fmt: skip
BACKBONES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "plain": (lambda: backbone_of(unet_configuration("PlainConvUNet", STRIDES, [4, 8, 8]), "decoder"), (8, 16, 16)),
    "residual": (
        lambda: backbone_of(unet_configuration("ResidualEncoderUNet", STRIDES, [4, 8, 8]), "decoder"),
        (8, 16, 16),
    ),
    "fpn": (lambda: FPN3d(1, 4, 3), (7, 9, 10)),
    "pimpic": (lambda: Pimpic3d(1, 4, 3, "decoder"), (8, 16, 16)),
    "lapn": (lambda: LapnPyramid(1, (4, 8, 8), 2, 4), (8, 16, 16)),
    "lapn without units": (lambda: LapnPyramid(1, (4, 8, 8), 0, 4), (8, 16, 16)),
    "swin": (lambda: SwinPyramid(1, 6, (2, 1, 1, 1), (1, 2, 2, 2), 3, levels="decoder"), (32, 32, 64)),
    "segresnet": (lambda: SegResNetPyramid(1, 8, (1, 2), (1,), "decoder"), (8, 16, 16)),
    "segresnet ds": (lambda: SegResNetDSPyramid(1, 4, (1, 2), levels="decoder"), (8, 16, 16)),
    "stunet": (lambda: STUNetPyramid(1, (4, 8, 8), (1, 2, 1), STRIDES, "decoder"), (8, 16, 16)),
    "unet3d": (lambda: UNet3DPyramid(1, 2, "decoder"), (8, 16, 16)),
    "vit": (lambda: ViTPyramid(1, (32, 32, 16), 4, 24, 48, 3, 4, "decoder"), (32, 32, 16)),
    "primus": (lambda: Primus.pyramid(1, "encoder", **PRIMUS), (16, 24, 32)),
    "nnformer": (
        lambda: NNFormerPyramid(1, (8, 16), (2, 4), (2, 2), (2, 4), drop_path=0.5, levels="decoder"),
        (9, 16, 12),
    ),
}


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """Bytes by storage that the backward pass keeps."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def result(network: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> tuple[dict[str, Tensor], int]:
    """Values, gradients and buffers of one pass, and the bytes that it kept."""
    torch.manual_seed(1)  # of stochastic depth
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with kept_bytes() as kept:
        maps = run(network)
    sum((m.square().mean() for m in maps), torch.zeros(())).backward()
    found = {f"map {i}": m.detach() for i, m in enumerate(maps)}
    found |= {f"gradient {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b for name, b in network.named_buffers()}
    return found, sum(size for place, size in kept.items() if place not in weights)


def assert_same(plain: nn.Module, run: Callable[[nn.Module], list[Tensor]]) -> None:
    recomputed = copy.deepcopy(plain)
    recompute_activations(recomputed)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    # the second pass sees the running statistics of the first
    for _ in range(2 if any("running" in name for name in plain.state_dict()) else 1):
        (expected, before), (found, after) = (result(network, run) for network in (plain, recomputed))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert after < 0.6 * before, (after, before)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_recompute_activations__same_to_the_bit_and_fewer_bytes_are_kept(name: str) -> None:
    torch.manual_seed(0)
    build, size = BACKBONES[name]
    plain, x = build(), torch.randn(2, 1, *size)
    assert_same(plain, lambda network: network(x))


def test_recompute_activations__swin_transformer_of_visible_blocks_and_decoder_of_tokens() -> None:
    torch.manual_seed(0)
    x, hidden = torch.randn(1, 1, 32, 32, 64), torch.tensor([False, True]).view(1, 1, 1, 2)
    mask = BlockMask(hidden, torch.tensor([[0]]))
    plain: Any = SwinPyramid(1, 6, (2, 1, 1, 1), (1, 2, 2, 2), 3)
    assert_same(plain, lambda network: network.masked_levels(x, mask))  # type: ignore[operator]
    tokens, places = torch.randn(2, 3, 8), torch.tensor([[0, 2, 5]] * 2)
    assert_same(LightDecoder(8, 4, 12, 2, 2), lambda network: [network(tokens, places, (1, 2, 3))])


def test_recompute_activations__can_be_turned_off_and_copied() -> None:
    pyramid, x = FPN3d(1, 4, 3), torch.randn(2, 1, 4, 8, 8)
    kinds = [type(module) for module in pyramid.modules()]
    recompute_activations(pyramid)
    assert [type(module) for module in copy.deepcopy(pyramid).modules()] != kinds
    recompute_activations(pyramid)  # once more changes nothing
    recompute_activations(pyramid, False)
    assert [type(module) for module in pyramid.modules()] == kinds
    swin = SwinPyramid(1, 12, (2, 1, 1, 1), window_size=3, use_checkpoint=True)
    recompute_activations(swin, False)
    assert not any(getattr(module, "use_checkpoint", False) for module in swin.modules())
    with torch.no_grad():
        recompute_activations(pyramid)
        assert not pyramid(x)[0].requires_grad

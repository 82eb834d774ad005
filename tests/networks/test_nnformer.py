from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.pool import quietly
from nnssl.deployment.session import make_session
from nnssl.methods.alice.method import Alice
from nnssl.methods.mae.method import MaskedAutoencoder
from nnssl.methods.shared.block_tokens import block_size
from nnssl.networks.nnformer import NNFormer, NNFormerPyramid
from nnssl.networks.nnformer_blocks import SkipAttentionBlock
from tests.networks.helpers import count_parameters, load_reference

STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 3]
SMALL: dict[str, Any] = {"widths": (8, 16, 32, 64), "num_heads": (2, 2, 4, 4), "windows": (4, 4, 8, 4)}


def _meta(kind: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(*arguments, **options)


def test_nnformer__has_the_parameters_of_alices_code() -> None:
    expected = load_reference("nnformer.json")["param_counts"]
    network = _meta(NNFormer, 1, 1, strides=STRIDES)
    backbone = network.backbone
    decoder = sum(count_parameters(p) for n, p in backbone.named_children() if n.startswith("decoder"))
    assert decoder == expected["decoder"] == 2_071_404
    assert count_parameters(network.decoder) == expected["final"] == 2691
    unused_token = 48  # theirs alone
    assert count_parameters(backbone) - decoder + unused_token == expected["encoder"] == 7_651_668
    assert count_parameters(network) + unused_token == expected["params"] == 9_725_763
    encoder = _meta(NNFormerPyramid, levels="encoder")
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 7_651_620


def test_nnformer__has_the_shapes_of_alices_code() -> None:
    theirs = load_reference("nnformer.json")["state_dict_shapes"]
    mine = _meta(NNFormer, 1, 1, strides=STRIDES).state_dict()
    shapes = Counter(tuple(t.shape) for t in mine.values())
    expected = Counter(tuple(s) for name, s in theirs.items() if not name.endswith("mask_token"))
    assert shapes == expected


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
@pytest.mark.parametrize("size", [(32, 32, 48), (17, 26, 40)])
def test_pyramid__takes_any_size_and_learns_all_it_uses(levels: Any, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pyramid = NNFormerPyramid(2, **SMALL, drop_path=0.0, levels=levels)
    maps = pyramid(torch.randn(1, 2, *size))
    for level, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert level.shape == (1, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))
    sum(level.square().mean() for level in maps).backward()
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, _ in pyramid.named_parameters() if name.startswith(pyramid.unused)}
    assert bool(silent) == (levels == "encoder")


def test_skip_attention__asks_the_encoder_in_the_same_window_alone() -> None:
    torch.manual_seed(0)
    pyramid = NNFormerPyramid(1, **SMALL, levels="decoder").eval()
    skip_block: Any = pyramid.decoder_skips[0]
    decoder, encoder = torch.randn(1, 8, 4, 4, 8), torch.randn(1, 8, 4, 4, 8)
    changed = encoder.clone()
    changed[:, 0, 0, 0, 0] += 3
    with torch.no_grad():
        difference = (skip_block(decoder, encoder) - skip_block(decoder, changed)).abs().amax((0, 1))
    assert bool((difference[..., :4] > 0).all()) and bool((difference[..., 4:] == 0).all())


def test_skip_attention__is_softmax_attention_with_relative_bias() -> None:
    torch.manual_seed(0)
    block: Any = NNFormerPyramid(1, **SMALL, levels="decoder").eval().decoder_skips[0]
    x, skip = torch.randn(1, 8, 4, 4, 4), torch.randn(1, 8, 4, 4, 4)
    with torch.no_grad():
        attention, (q, c) = block.block.attn, (block.block.norm1(t.movedim(1, -1)).view(64, 8) for t in (x, skip))
        key, value = attention.qkv(c).view(64, 2, 2, 4).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q.view(64, 2, 4), key) / 2
        scores += attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
        read = torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).reshape(64, 8)
        expected = (x + skip).movedim(1, -1).view(64, 8) + attention.proj(read)
        expected = expected + block.block.mlp(block.block.norm2(expected))
        found = block(x, skip).movedim(1, -1).reshape(64, 8)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", [Alice, MaskedAutoencoder])
def test_pretraining__takes_it_with_blocks_of_its_coarsest_stride(method: Any) -> None:
    pyramid = _meta(NNFormerPyramid, **SMALL)
    config = method.config_class(patch_size=(16, 32, 48), batch_size=2)
    method.check(config, pyramid)
    assert block_size(pyramid, (16, 32, 48), None) == (16, 16, 16)
    with pytest.raises(UserError, match="multiples of 16,16,16"):
        method.check(method.config_class(patch_size=(16, 24, 48), batch_size=2), pyramid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"widths": (8, 16, 32)}, "as many"), ({"widths": (8, 16, 32, 32)}, "double"), ({"num_heads": (3, 2, 4, 4)},
     "heads"), ({"depths": (1, 2, 2, 2)}, "two or more blocks")],
)  # fmt: skip
def test_pyramid__refuses_numbers_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _meta(NNFormerPyramid, **{**SMALL, **arguments})


def test_skip_attention__can_be_exported() -> None:
    """The exporter replaces the attention kernel by operations whose result has other strides."""
    block = SkipAttentionBlock(4, 2, 2, 0.0).eval()
    inputs = (torch.randn(2, 4, 2, 4, 4), torch.randn(2, 4, 2, 4, 4))
    with quietly():
        program: Any = torch.onnx.export(block, inputs, dynamo=True, opset_version=18, verbose=False)
    found = make_session(program.model_proto.SerializeToString())
    names = [i.name for i in found.get_inputs()]
    (output,) = found.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(output), block(*inputs), rtol=1e-4, atol=1e-5)

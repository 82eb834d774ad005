from __future__ import annotations

import torch

from nnssl.methods.alice.casa import Attention, CodeCasa, PaperCasa, attention_weights
from tests.networks.helpers import count_parameters, fill_by_rule, input_by_rule, load_reference

REFERENCE = load_reference("alice.json")


def test_attention_weights__equal_the_reference_and_rows_sum_to_one() -> None:
    case = REFERENCE["casa_attention"]
    q, k, v = (torch.tensor(case[name], dtype=torch.float64) for name in "qkv")
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights, torch.tensor(case["attention"], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights @ v, torch.tensor(case["output"], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))


def test_code_casa__equals_the_official_module() -> None:
    case = REFERENCE["arch_vectors"]["alice.CASA(8,16,2,4,4)"]
    casa = fill_by_rule(CodeCasa(8, 16, heads=2, head_width=4)).eval()
    query = input_by_rule([1, 3, 8])
    for context, name in ((input_by_rule([1, 5, 8]), "student"), (2 * input_by_rule([1, 6, 8]), "teacher")):
        expected = torch.tensor(case[name], dtype=torch.float64)
        torch.testing.assert_close(casa(query, context)[0], expected, rtol=0, atol=1e-9)


def test_code_casa__has_the_shapes_and_the_used_parameters_of_the_official_module() -> None:
    shapes = REFERENCE["casa_shapes"]
    casa = CodeCasa(512, shapes["d_inner"], shapes["heads"], shapes["d_k"], shapes["dropout"])
    output = casa(torch.randn(shapes["query"]), torch.randn(shapes["key_value"]))
    assert [list(output.shape)] * 2 == shapes["output"]
    assert count_parameters(casa) == REFERENCE["param_counts"]["alice.CASA(512,2048,8,64,64)"]["used"]


def test_paper_casa__does_not_add_the_query() -> None:
    torch.manual_seed(0)
    casa, query = PaperCasa(6, 4), torch.randn(2, 3, 4)
    same = torch.randn(2, 1, 6).expand(2, 5, 6)  # whoever asks hears the same
    output = casa(query, same)
    assert output.shape == (2, 3, 6)
    torch.testing.assert_close(output, output[:, :1].expand_as(output))
    assert not torch.allclose(casa(query, torch.randn(2, 5, 6)), output)
    official = CodeCasa(6, 8, heads=1, head_width=6).eval()
    wide = official(torch.randn(2, 3, 6), same)
    assert not torch.allclose(wide, wide[:, :1].expand_as(wide))


def test_attention__of_several_heads_is_each_heads_own() -> None:
    torch.manual_seed(0)
    attention, query, context = Attention(8, heads=2), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    q, k, v = attention.query(query), attention.key(context), attention.value(context)
    parts = [attention_weights(q[..., h], k[..., h]) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(attention(query, context), torch.cat(parts, dim=-1))

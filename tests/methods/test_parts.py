from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.data.loader import SampleDataset
from nnssl.methods.base import Batch, Method, StepOutput
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pimpic_unet import Pimpic3d
from nnssl.networks.pyramid import FeaturePyramid
from tests.runs import make_setup

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in method_names()),
    ("vox2vec", {"joint_batch_norm": True}),
    ("lapn", {"symmetric": True, "negatives": "batch"}),
    ("pimpic", {"terms": "pic"}),
    ("alice", {"head": "dino", "objective": "code", "casa": "code"}),
    ("simclr", {"variant": "intra_scan", "intra_scan_crops": 2}),
]


def built(name: str, config: Any, accumulate: int) -> tuple[Method, list[int]]:
    """A method on a network with instance norm, and the numbers of crops of each pass that wants a gradient."""
    torch.manual_seed(0)
    kind = get_method(name)
    backbone = Pimpic3d(1, 4, 3, kind.levels)
    config = replace(config, accumulate=accumulate)
    kind.check(config, backbone)
    crops: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        crops.append(len(inputs[0]))

    method = kind(backbone, config)
    next(m for m in backbone.modules() if isinstance(m, nn.Conv3d)).register_forward_pre_hook(count)
    return method, crops


def first_batch(root: Path, name: str, options: dict[str, Any]) -> tuple[Any, Batch]:
    """The first four samples of a run, collated."""
    setup = make_setup(root, name, batch_size=4, **options)
    dataset = SampleDataset(get_method(name), setup.config, setup.train, setup.val, setup.aligner)
    samples: list[Any] = [dataset[("train", 0, i)][1] for i in range(4)]
    return setup.config, get_method(name).collate(samples)


def step(method: Method, batch: Batch, dtype: torch.dtype) -> tuple[StepOutput, dict[str, Tensor]]:
    views = {name: x.to(dtype) if x.is_floating_point() else x for name, x in method.augment(batch).items()}
    method.to(dtype)
    if getattr(method, "queue", None) is not None:
        method(views)  # fills it
    output = method(views)
    output.loss.backward()
    return output, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def numbers(output: StepOutput) -> list[Tensor]:
    return [output.loss, *output.terms.values(), output.embeddings, *(output.pairs or ())]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_accumulate__step_and_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    config, batch = first_batch(tmp_path, name, options)
    cases = [(2, torch.float32, 1e-5), (4, torch.float64, 1e-12)]
    for parts, dtype, most in cases[1:] if options else cases:
        whole, crops_of_whole = built(name, config, 1)
        expected, gradients = step(whole, batch, dtype)
        method, crops = built(name, config, parts)
        output, found = step(method, batch, dtype)
        assert max(crops) <= -(-max(crops_of_whole) // parts), "the network sees a part of the crops at a time"
        assert output.terms.keys() == expected.terms.keys() and found.keys() == gradients.keys()
        close = 1e-4 if dtype == torch.float32 else 1e-7
        torch.testing.assert_close(numbers(output), numbers(expected), rtol=close, atol=close, equal_nan=True)
        torch.testing.assert_close(dict(method.named_buffers()), dict(whole.named_buffers()), rtol=close, atol=close)
        error, norm = (sum(g.double().square().sum() for g in gs) for gs in (
            [found[key] - gradients[key] for key in found], gradients.values()))  # fmt: skip
        assert (error / norm) ** 0.5 < most


def test_in_parts__draws_the_same_random_numbers_again_and_cuts_points() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(5, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 0], [2, 0, 0, 1], [4, 0, 0, 0]])
    drawn: list[Tensor] = []

    def noisy(x: Tensor, at: Tensor) -> Tensor:
        drawn.append(torch.rand(len(x), 1, dtype=x.dtype))
        return ((x * drawn[-1]) @ weight)[at[:, 0]].square()

    result = in_parts(noisy, 3, rows, points=(points, torch.tensor([1, 0, 2, 0, 1])))
    assert [len(noise) for noise in drawn] == [1, 2, 2]
    torch.testing.assert_close(result, (rows * torch.cat(drawn))[[0, 2, 2, 4]].square())
    result.sum().backward()
    assert torch.equal(torch.cat(drawn[5:2:-1]), torch.cat(drawn[:3])), "the backward pass goes from the last part on"
    kept = torch.cat(drawn[:3])
    again = torch.eye(3, dtype=torch.float64, requires_grad=True)
    ((rows * kept) @ again)[[0, 2, 2, 4]].square().sum().backward()
    torch.testing.assert_close(weight.grad, again.grad)


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        (FPN3d(1, 4, 3, "encoder"), {}, "checkpoint_activations=true"),
        (Pimpic3d(1, 4, 3), {"crops": 3, "batch_size": 1}, "accumulate=3 or less"),
    ],
)
def test_check__batch_statistics_and_empty_parts_are_refused(
    backbone: FeaturePyramid, options: dict[str, Any], said: str
) -> None:
    kind = get_method("pimpic")
    config = kind.config_class(**{"patch_size": (8, 16, 16), "accumulate": 4, **options})
    with pytest.raises(UserError, match=said):
        kind.check(config, backbone)

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.geometry import overlaps_of_patches
from nnssl.methods.base import Batch
from nnssl.methods.options import override
from nnssl.methods.pimpic.loss import EPS
from nnssl.methods.pimpic.method import Pimpic, PimpicConfig, channel_means
from nnssl.networks.contrastive import projection_head
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pimpic_unet import Pimpic3d
from tests.methods.pimpic_batches import crops_at, joined, random_batch, small_config
from tests.networks.helpers import count_parameters, fill_by_rule, input_by_rule, load_reference, state_dict_shapes

REFERENCE = load_reference("pimpic.json")


def _official(case: str) -> tuple[Pimpic, Batch]:
    """The method with the heads of the reference, and its three patches."""
    vector = REFERENCE[case]
    config = small_config(patch_size=(32, 32, 32), crops=3, include_diagonal=True, projection_dim=3, pim_hidden_dim=6,
                     pic_hidden_dim=3)  # fmt: skip
    starts = np.array(REFERENCE["losses end to end"]["coords"])[:, 0]
    overlap, boxes = overlaps_of_patches(starts, [32] * 3)
    np.testing.assert_allclose(overlap, REFERENCE["losses end to end"]["S"], rtol=0, atol=1e-12)
    pairs = np.argwhere(np.triu(overlap >= 0.01, k=1))
    crops = input_by_rule(vector["input"]).numpy()
    batch = joined({"crops": crops, "overlap": overlap, "boxes": boxes, "pairs": pairs})
    method = Pimpic(Pimpic3d(1, 4), config)
    fill_by_rule(method)
    return method, batch


def test_pim_embeddings__official_vectors() -> None:
    method, batch = _official("PiM projection")
    first = method.pim_head[0]
    assert isinstance(first, torch.nn.Linear) and first.in_features == REFERENCE["PiM projection"]["in_dim"]
    embeddings = method.pim_embeddings(channel_means(method.backbone(batch["crops"][0])))
    expected = torch.tensor(REFERENCE["PiM projection"]["out"], dtype=torch.float64)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-9)


def test_step__official_losses_end_to_end() -> None:
    method, batch = _official("losses end to end")
    output = method(batch)
    expected = REFERENCE["losses end to end"]
    assert abs(output.terms["pim"].item() - expected["pim"]) < 1e-9
    assert abs(output.terms["pic"].item() - expected["pic"]) < 1e-9
    assert abs(output.loss.item() - expected["pim"] - expected["pic"]) < 1e-9
    assert output.terms["pairs"] == 3 and output.terms["clamped"] == 0


def test_method__has_the_published_sizes() -> None:
    with torch.device("meta"):
        method = Pimpic(Pimpic3d(), PimpicConfig(patch_size=(64, 64, 64)))
    counts = REFERENCE["param_counts"]
    assert count_parameters(method.pim_head) == counts["PiM_head"]["params"]
    assert count_parameters(method.pic_head) == counts["PiC_head"]["params"]
    used = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert used == counts["EncoderPiMPiC"]["params"] == 24_918_272
    published = list(REFERENCE["state_dict_shapes"]["EncoderPiMPiC"].values())
    unused = tuple(f"backbone.{prefix}" for prefix in method.backbone.unused)
    own = {k: v for k, v in state_dict_shapes(method).items() if not k.startswith(unused)}
    assert sorted(own.values()) == sorted(published)


@pytest.mark.parametrize("terms", ["pimpic", "pim", "pic"])
def test_step__every_trainable_parameter_takes_part(terms: str) -> None:
    config = small_config(terms=terms)
    method = Pimpic(Pimpic3d(1, 4, 4), small_config(terms=terms, patch_size=(16, 16, 16)))
    batch = crops_at([[0, 0, 0], [3, 0, 5], [0, 9, 2]], small_config(terms=terms, patch_size=(16, 16, 16)))
    output = method(batch)
    output.loss.backward()
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "DistributedDataParallel would wait for these for ever"
    assert set(output.terms) == {"pimpic": {"pim", "pic", "clamped", "pairs"}, "pim": {"pim", "clamped", "pairs"},
                                 "pic": {"pic", "pairs"}}[terms]  # fmt: skip
    total = sum(output.terms[name] for name in ("pim", "pic") if name in output.terms)
    torch.testing.assert_close(output.loss.detach(), total)
    assert output.embeddings.shape[1] == config.projection_dim


@pytest.mark.parametrize("terms", ["pimpic", "pic"])
def test_step__without_an_overlapping_pair_pic_is_an_exact_zero_on_the_graph(terms: str) -> None:
    config = small_config(terms=terms, crops=3)
    method = Pimpic(FPN3d(1, 4, 3, "encoder"), config)
    before = {k: v.clone() for k, v in method.state_dict().items() if k.startswith("pic_head") and "running" in k}
    output = method(crops_at([[0, 0, 0], [0, 0, 20], [0, 20, 0]], config))
    output.loss.backward()
    assert output.terms["pic"] == 0 and output.terms["pairs"] == 0
    gradients = [p.grad for p in method.backbone.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients if g is not None) == (terms == "pimpic")
    after = method.state_dict()
    assert before and all(torch.equal(v, after[k]) for k, v in before.items()), "statistics of no rows were taken"


def test_step__pairs_below_the_threshold_have_no_pic_term() -> None:
    starts = [[0, 0, 0], [0, 0, 4], [0, 6, 6]]  # shares of 0.5, 0.0625 and 0.1875
    for least, pairs in ((0.01, 3), (0.1, 2), (0.3, 1)):
        config = small_config(least_overlap=least, crops=3)
        assert Pimpic(FPN3d(1, 4, 3), config)(crops_at(starts, config)).terms["pairs"] == pairs
    assert REFERENCE["pair_threshold"]["value"] == PimpicConfig().least_overlap


def test_step__identical_crops_have_a_finite_gradient() -> None:
    """Their rest is empty: a row of zeros that goes through the head with the others."""
    config = small_config(crops=2)
    method = Pimpic(FPN3d(1, 4, 3, "encoder"), config)
    batch = crops_at([[0, 0, 0], [0, 0, 0]], config)
    regions = method.regions(method.backbone(batch["crops"][0]), batch["boxes"][0])
    rows = method.pic_rows(regions[None], batch["pairs"])
    torch.testing.assert_close(rows[:, 2], rows[:, 3])
    output = method(batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_step__clamped_pairs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(crops=2, terms="pim")
    method, batch = Pimpic(FPN3d(1, 4, 3), config), crops_at([[0, 0, 0], [0, 0, 4]], config)

    def opposite(means: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) + 0 * means.sum()

    monkeypatch.setattr(method, "pim_embeddings", opposite)
    output = method(batch)
    assert output.terms["clamped"] == 1
    assert output.loss.item() == pytest.approx(-math.log(EPS), rel=1e-5)


def _pim_by_hand(embeddings: Tensor, overlap: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    terms = [-(1 - (overlap[i, j] - embeddings[i] @ embeddings[j]).abs().clamp(0, 1) + EPS).log() for i, j in pairs]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("across", [False, True])
def test_step__volumes_are_compared_only_on_request(tmp_path: Path, across: bool) -> None:
    config = small_config(crops=3, across_volumes=across, terms="pim")
    method = Pimpic(FPN3d(1, 4, 3, "encoder"), config)
    batch = method.augment(random_batch(tmp_path, config))
    output = method(batch)
    overlap = torch.block_diag(*batch["overlap"])
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6) if across or i // 3 == j // 3]
    expected = _pim_by_hand(output.embeddings.double(), overlap, pairs)
    torch.testing.assert_close(output.loss.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", ["objective=paper", "d_extension=true", "include_diagonal=true", "temperature=0.1"])
def test_step__options_change_the_loss(option: str) -> None:
    losses = []
    for options in ([], [option]):
        torch.manual_seed(0)
        config = override(small_config(crops=4, projection_dim=1), options)  # cosines of 1 or -1
        method = Pimpic(FPN3d(1, 4, 3, "encoder"), config)
        losses.append(method(crops_at([[0, 0, 0], [1, 2, 3], [4, 0, 4], [0, 0, 20]], config)).loss.item())
    assert losses[0] != losses[1]


def test_step__overfits_one_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small_config(d_extension=True)
    method = Pimpic(Pimpic3d(1, 4, 3), config)
    batch = method.augment(random_batch(tmp_path, config))
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
    outputs = []
    for _ in range(40):
        outputs.append(method(batch))
        optimiser.zero_grad()
        outputs[-1].loss.backward()
        optimiser.step()
    for name in ("pim", "pic"):
        assert outputs[-1].terms[name] < 0.7 * outputs[0].terms[name], name


def test_init__few_levels_and_anisotropic_strides() -> None:
    """Four levels: PiM and PiC share two of them. A patch that a pooling rounds up counts as the map does."""
    config = small_config(patch_size=(9, 8, 12))
    method = Pimpic(FPN3d(1, 4, 4, "encoder"), config)
    expected = projection_head(5 * 4 * 6 + 3 * 2 * 3 + 2 * 1 * 2, 8, 8)
    assert state_dict_shapes(method.pim_head) == state_dict_shapes(expected)
    assert state_dict_shapes(method.pic_head) == state_dict_shapes(projection_head(4 + 8 + 16, 8, 8))
    assert method(crops_at([[0, 0, 0], [0, 1, 2], [3, 3, 3]], config)).loss.isfinite()


def test_check__refuses_what_cannot_work() -> None:
    with pytest.raises(UserError, match="this network has 2"):
        Pimpic.check(small_config(), FPN3d(1, 4, 2, "encoder"))
    with pytest.raises(UserError, match="use 8,8,16"):
        Pimpic.check(small_config(patch_size=(8, 8, 8)), Pimpic3d(1, 4, 4))
    for wrong, reason in (({"crops": 1}, "crops"), ({"spread": 1.5}, "spread"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(UserError, match=reason):
            small_config(**wrong)

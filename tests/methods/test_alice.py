from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.checkpoints.loading import fitting
from nnssl.core.errors import UserError
from nnssl.methods.alice.loss import CentredCrossEntropy
from nnssl.methods.alice.method import Alice, AliceConfig, momentum_at
from nnssl.methods.base import Batch
from nnssl.methods.options import from_plain, new_options, to_plain
from nnssl.methods.registry import get_method
from nnssl.methods.shared.block_tokens import block_size
from nnssl.methods.shared.masked_method import from_blocks
from nnssl.networks.build import backbone_of
from nnssl.networks.contrastive import DinoHead, RowNorm
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.vit import ViTPyramid
from nnssl.pretraining.health import embedding_std
from nnssl.pretraining.pictures import draw_panels
from tests.methods.alice_batches import PATCH, alice_batch, alice_config, alice_method, match_with
from tests.networks.helpers import load_reference, unet_configuration
from tests.volumes import CT, MR, Channel, add_volume, index_volume, make_folder

REFERENCE = load_reference("alice.json")
CODE: dict[str, Any] = {"objective": "code", "casa": "code"}
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"head": "dino"},
    {"head": "dino", "standardise": False},
    {"head": "dino", "casa": "code"},
    {"objective": "code"},
    CODE,
]


def test_sample__crops_equal_the_reference_around_a_point(tmp_path: Path) -> None:
    case = REFERENCE["crop_around_point"]
    folder = make_folder(tmp_path)
    add_volume(folder, "a", index_volume((6, 5, 4)))
    for expected in case["cases"]:
        body = np.zeros((6, 5, 4), dtype=bool)
        body[tuple(expected["point"])] = True
        add_volume(folder, "b", index_volume((6, 5, 4)), body)
        volume = folder.open("b", 0, partial(match_with, folder.open("b", 0)))
        sample = Alice.sample(volume, alice_config(patch_size=tuple(case["roi"])), np.random.default_rng(0))
        for crop in sample["crops"][:, 0]:
            assert (crop.sum(), crop[0, 0, 0], crop[-1, -1, -1]) == (
                expected["sum"], expected["first"], expected["last"]
            )  # fmt: skip


def test_sample__the_matched_points_are_in_the_middle_of_both_crops(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for case, size in (("a", (40, 50, 44)), ("b", (30, 60, 40))):
        add_volume(folder, case, index_volume(size) + 1)
    other = folder.open("b", 1)
    matches = []

    def spy(volume: Any, rng: np.random.Generator) -> Any:
        matches.append(match_with(other, volume, rng))
        return matches[-1]

    for seed in range(5):
        volume = folder.open("a", 0, spy)
        one, two = (Alice.sample(volume, alice_config(), np.random.default_rng(seed)) for _ in range(2))
        assert all(np.array_equal(one[k], two[k], equal_nan=k == "similarity") for k in one)
        match = matches[-1]
        middles = one["crops"][:, 0, PATCH[0] // 2, PATCH[1] // 2, PATCH[2] // 2]
        voxels = [np.ravel_multi_index(p, v.size) + 1 for p, v in ((match.point, volume), (match.other_point, other))]
        assert middles.tolist() == voxels
        assert one["sizes"].tolist() == [[40, 50, 44], [30, 60, 40]]


@pytest.mark.parametrize("channels", [(CT,), (MR, MR)], ids=["CT", "two MR channels"])
def test_augment__adds_masks_and_targets_and_depends_on_the_batch_only(
    tmp_path: Path, channels: tuple[Channel, ...]
) -> None:
    config = alice_config()
    method, batch = alice_method(config, len(channels)), alice_batch(tmp_path, config, channels)
    before = batch["crops"].clone()
    one, two = method.augment(batch), method.augment(batch)
    assert all(torch.equal(one[k].nan_to_num(), two[k].nan_to_num()) for k in one)
    assert one["targets"].shape == one["crops"].shape == (2, 2, len(channels), *PATCH)
    assert torch.equal(batch["crops"], before) and torch.equal(one["crops"], before)
    assert not torch.allclose(one["targets"], one["crops"]) and one["targets"].isfinite().all()
    hidden = one["hidden"]
    assert hidden.flatten(2).sum(2).eq(9).all() and not torch.equal(hidden[:, 0], hidden[:, 1])


def _swapped(batch: Batch) -> Batch:
    return {k: v.flip(1) if v.ndim > 1 else v for k, v in batch.items()}


@pytest.mark.parametrize("options", OBJECTIVES)
def test_step__swapping_query_and_key_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    config = alice_config(**options)
    batch = alice_method(config).augment(alice_batch(tmp_path, config))
    for training in (False, True) if config.casa == "paper" else (False,):  # the code's CASA drops out
        one, two = (alice_method(config).train(training).step(b) for b in (batch, _swapped(batch)))
        torch.testing.assert_close(one.loss, two.loss, rtol=1e-4, atol=0)
        shuffled = set() if training else {"across_shuffled"}
        assert one.loss.isfinite() and one.terms.keys() - shuffled == {"reconstruction", "across", "within"}
        torch.testing.assert_close(one.loss.detach(), sum(one.terms[k] for k in one.terms.keys() - shuffled))


@pytest.mark.parametrize("options", OBJECTIVES)
def test_step__no_gradient_reaches_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    config = alice_config(**options)
    method = alice_method(config)
    batch = method.augment(alice_batch(tmp_path, config))
    shared = {id(p) for p in method.backbone.parameters()}
    followed = {n for n, p in method.named_parameters() if n.startswith("target.") and id(p) not in shared}
    for name in followed:
        method.get_parameter(name).requires_grad_()  # would get a gradient, if there was a way
    wanted: list[Tensor] = []
    casa = method.casa.forward

    def watched(query: Tensor, context: Tensor) -> Tensor:
        wanted.append(casa(query, context))
        return wanted[-1]

    monkeypatch.setattr(method.casa, "forward", watched)
    output = method.step(batch)
    assert [tokens.requires_grad for tokens in wanted] == [True, False], "the student's, then the target's tokens"
    output.loss.backward()
    silent = {name for name, p in method.named_parameters() if p.grad is None and p.requires_grad}
    assert silent == followed and followed
    learning = ["backbone.", "tokens.", "decoder.", "bridge.", "head.", "casa."]
    learning += ["predictors.across.", "predictors.within."] if config.moco else []
    assert all(any(n.startswith(k) and n not in silent for n, _ in method.named_parameters()) for k in learning)


def _warm(method: Alice, batch: Batch) -> Alice:
    """In evaluation, after steps from which the running statistics are known."""
    for _ in range(3):
        method.train().step(batch)
    return method.eval()


def test_step__the_codes_casa_asks_with_vectors_that_are_not_standardised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in runs of versions with one head."""
    config = alice_config(head="dino", casa="code")
    method = alice_method(config).eval()
    batch = method.augment(alice_batch(tmp_path, config))
    asked: list[Tensor] = []
    casa = method.casa.forward

    def watched(query: Tensor, context: Tensor) -> Tensor:
        asked.append(query)
        return cast(Tensor, casa(query, context))

    monkeypatch.setattr(method.casa, "forward", watched)
    method.step(batch)
    visible, _ = method.encode(batch["crops"].flatten(0, 1), batch["hidden"].flatten(0, 1))
    torch.testing.assert_close(asked[0], DinoHead.forward(cast(DinoHead, method.head), visible))


@pytest.mark.parametrize("options", [{}, {"head": "dino", "standardise": False}], ids=["moco", "dino"])
def test_step__the_terms_are_the_papers(tmp_path: Path, options: dict[str, Any]) -> None:
    """Cosines of crossed pairs of averages, and of tokens of the same crop, from the method's own vectors."""
    config = alice_config(**options)
    method = alice_method(config)
    head, target = method.head, cast(Any, method.target)["head"]
    predicts = method.predictors or {"across": torch.nn.Identity(), "within": torch.nn.Identity()}
    batch = method.augment(alice_batch(tmp_path, config))
    terms = _warm(method, batch).step(batch).terms

    def distance(a: Tensor, b: Tensor) -> float:
        return (2 - 2 * torch.cosine_similarity(a, b, dim=-1)).mean().item()

    across = shuffled = within = error = 0.0
    places: list[list[tuple[Tensor, Tensor]]] = []
    with torch.no_grad():
        for i in range(2):
            student, goals, seen, wanted = [], [], [], []
            for k in range(2):
                crop, hidden = batch["crops"][i, k][None], batch["hidden"][i, k][None]
                visible, decoded = method.encode(crop, hidden)
                student.append(head(method.bridge(decoded)))
                goals.append(method._goals(batch["targets"][i, k][None]).tokens)
                seen.append(predicts["within"](head.within(method.casa(visible, student[k]))))
                wanted.append(target.within(method.casa(visible, goals[k])))
                error += method.reconstruction_error(crop, decoded, hidden & batch["inside"][i, k]).item() / 2
            for k in range(2):
                within += distance(seen[k], wanted[k]) / 2
            means = [predicts["across"](head.across(s.mean(1))) for s in student]
            places.append(list(zip(means, [target.across(g.mean(1)) for g in goals], strict=True)))
        for i in range(2):
            for k in range(2):
                across += distance(places[i][k][0], places[i][1 - k][1]) / 2
                shuffled += distance(places[i][k][0], places[1 - i][1 - k][1]) / 2
    expected = {"across": across, "across_shuffled": shuffled, "within": within, "reconstruction": error}
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("options", OBJECTIVES[:3], ids=["moco", "standardised", "neither"])
def test_step__what_all_crops_share_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A large constant on all vectors makes all of them alike; the terms are those without it."""
    config = alice_config(**options)
    method = alice_method(config).double()
    floating = {k: v.double() if v.is_floating_point() else v for k, v in alice_batch(tmp_path, config).items()}
    batch = method.augment(floating)
    before = method.step(batch).terms["across"].item()
    own, of_dino = RowNorm.forward, DinoHead.forward
    if config.moco:
        monkeypatch.setattr(RowNorm, "forward", lambda self, x: own(self, x + 100))
    else:
        monkeypatch.setattr(DinoHead, "forward", lambda self, *inputs: of_dino(self, *inputs) + 100)
    after = method.step(batch).terms["across"].item()
    assert before > 1e-3
    assert after < 1e-4 * before if options == OBJECTIVES[2] else after == pytest.approx(before, rel=1e-6)


def test_step__student_and_target_have_statistics_of_their_own_and_the_checkpoint_has_them(tmp_path: Path) -> None:
    config = alice_config()
    method = alice_method(config)
    batch = method.augment(alice_batch(tmp_path, config))
    names = [f"{side}head.{layer}.norm.running_mean" for side in ("", "target.")
             for layer in ("normalise", "across", "within")]  # fmt: skip
    method.step(batch)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    assert all(state[name].any() for name in names if "normalise" in name)
    assert not torch.equal(state[names[0]], state[names[3]])
    method.after_step(0)
    method.eval().step(batch)
    assert all(torch.equal(method.state_dict()[name], state[name]) for name in names)
    other = alice_method(config)
    other.load_state_dict(method.state_dict())
    for of_one, of_other in zip(
        method.step(batch).terms.values(), other.eval().step(batch).terms.values(), strict=True
    ):
        assert torch.equal(of_one, of_other)


def test_step__the_codes_whole_crops_are_the_encoders_and_its_targets_are_not_augmented(tmp_path: Path) -> None:
    config = alice_config(**CODE)
    method = alice_method(config).eval()
    batch = method.augment(alice_batch(tmp_path, config))
    assert torch.equal(batch["targets"], batch["crops"])
    crops, hidden = batch["crops"].flatten(0, 1), batch["hidden"].flatten(0, 1)
    with torch.no_grad():
        visible, decoded = method.encode(crops, hidden)
        student, goals = method._vectors(visible, decoded), method._goals(crops)
        encoded = method.tokens(method.backbone, crops, method.grid)
    torch.testing.assert_close(student.whole, method.head(visible.mean(1)))
    torch.testing.assert_close(goals.whole, method.head(encoded.mean(1)))  # the target equals the student at first
    torch.testing.assert_close(method.step(batch).embeddings, student.whole)
    assert student.tokens.shape == goals.tokens.shape == (4, 12, 8)
    own = method.head(method.bridge(decoded))
    assert not torch.allclose(student.tokens, own), "the student's tokens have a last layer of their own"
    with torch.no_grad():
        everywhere = torch.arange(12).expand(4, -1)
        whole = method.head(method.bridge(method.decoder(encoded, everywhere, method.grid)))
    torch.testing.assert_close(goals.tokens, whole)


def test_step__the_codes_masks_are_columns_and_its_error_is_over_all_raw_voxels(tmp_path: Path) -> None:
    config = alice_config(objective="code")
    method = alice_method(config).eval()
    batch = method.augment(alice_batch(tmp_path, config))
    assert torch.equal(batch["hidden"][:, :, 0], batch["hidden"][:, :, 1])
    assert batch["hidden"].flatten(2).sum(2).tolist() == [[10, 10], [10, 10]]  # ceil(0.75 * 6) columns of 2
    crops = batch["crops"].flatten(0, 1)
    with torch.no_grad():
        _, decoded = method.encode(crops, batch["hidden"].flatten(0, 1))
        predicted = from_blocks(method.decoder.predict(decoded), method.block, PATCH)
    expected = 5 * (predicted - crops).square().mean()
    torch.testing.assert_close(method.step(batch).terms["reconstruction"], expected)


def test_step__the_codes_centres_move_in_training_only(tmp_path: Path) -> None:
    config = alice_config(objective="code")
    method = alice_method(config)
    batch = method.augment(alice_batch(tmp_path, config))
    assert not alice_method(alice_config()).centres
    method.eval().step(batch)
    centres = [centre for centre in method.centres.values() if isinstance(centre, CentredCrossEntropy)]
    assert all(c.centre.abs().max() == 0 for c in centres)
    method.train().step(batch)
    assert len(centres) == 2 and all(c.centre.abs().max() > 0 for c in centres)
    assert {"centres.across.centre", "centres.within.centre", "temperature"} <= method.state_dict().keys()
    assert any(name.startswith(method.of_the_run) for name in method.state_dict())


def test_step__embeddings_tell_a_collapse(tmp_path: Path) -> None:
    config = alice_config()
    method = alice_method(config)
    batch = method.augment(alice_batch(tmp_path, config))
    output = method.step(batch)
    assert output.embeddings.shape == (4, 8)
    assert output.pairs and torch.equal(output.pairs[0], output.embeddings) and output.pairs[1].shape == (4, 8)
    assert embedding_std(method.step(batch).embeddings) > 0
    torch.nn.init.zeros_(method.head.layers[0].weight)  # type: ignore[union-attr, index, arg-type]
    assert embedding_std(method.step(batch).embeddings) < 1e-6


def test_after_step__the_target_follows_by_the_codes_schedule(tmp_path: Path) -> None:
    case = REFERENCE["ema_momentum"]
    values = [momentum_at(i, case["total"], case["base"]) for i in case["its"]]
    assert values == pytest.approx(case["values"], abs=1e-12)
    method = alice_method(alice_config(num_epochs=2, steps_per_epoch=2))
    before = {name: p.clone() for name, p in method.target.named_parameters()}
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.tokens.parameters(), *method.head.parameters()):
            parameter.add_(1)
    method.after_step(1)
    shared = {id(p) for p in method.backbone.parameters()}
    moved = 1 - momentum_at(1, 4, 0.996)
    for name, parameter in method.target.named_parameters():
        if id(parameter) not in shared:
            torch.testing.assert_close(parameter - before[name], torch.full_like(parameter, moved))


def test_after_step__the_temperature_is_that_of_the_epoch(tmp_path: Path) -> None:
    method = alice_method(alice_config(objective="code", num_epochs=40, steps_per_epoch=10))
    case = REFERENCE["teacher_temperature"]
    for epoch, value in zip(case["epochs"], case["values"], strict=True):
        if epoch:
            method.after_step(epoch * 10 - 1)
        assert method.temperature.item() == pytest.approx(value, rel=1e-6)


def test_load_state_dict__another_runs_backbone_gives_an_equal_target() -> None:
    method, other = alice_method(alice_config()), alice_method(alice_config())
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.add_(1)
    method.load_state_dict({f"backbone.{k}": v for k, v in other.backbone.state_dict().items()}, strict=False)
    mine: Any = method.target["backbone"]
    assert all(torch.equal(mine.state_dict()[k], v) for k, v in other.backbone.state_dict().items())


def test_load_state_dict__another_heads_run_gives_its_backbone_and_an_equal_target() -> None:
    method, other = alice_method(alice_config()), alice_method(alice_config(head="dino"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.rand_like(parameter))
    values, different = fitting(method.state_dict(), other.state_dict())
    assert not any(name.startswith("backbone.") for name in different) and "head.layers.0.weight" in different
    method.load_state_dict(values, strict=False)
    target: Any = method.target
    for mine in (method.backbone, target["backbone"]):
        assert all(torch.equal(mine.state_dict()[k], v) for k, v in other.backbone.state_dict().items())
    assert all(torch.equal(target["head"].state_dict()[k], v) for k, v in method.head.state_dict().items())


def test_config__runs_of_versions_with_one_head_go_on_with_it() -> None:
    config = alice_config(head="dino")
    stored = {name: value for name, value in to_plain(config).items() if name != "head"}
    assert from_plain(type(config), stored) == config and new_options(config, stored) == []
    assert AliceConfig().head == "moco"
    names = alice_method(config).state_dict()
    assert {"head.directions.weight", "target.head.mlp.0.weight"} <= names.keys()
    assert not any(("norm.running" in name and ".head." in name) or "predictors" in name for name in names)


@pytest.mark.parametrize("options", [{}, {"objective": "code"}], ids=["paper", "code"])
@pytest.mark.parametrize("kind", ["unet", "vit", "swin"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_step__every_encoder_learns(tmp_path: Path, kind: str, options: dict[str, Any], precision: torch.dtype) -> None:
    torch.manual_seed(0)
    patch = (32, 64, 64) if kind == "swin" else (32, 32, 64)  # four blocks of 32, one of them visible
    config = alice_config(patch_size=patch, batch_size=2, **options)
    if kind == "vit":
        backbone: Any = ViTPyramid(1, (32, 32, 32), 4, 24, 32, 3, 4)
    elif kind == "swin":
        backbone = SwinPyramid(1, 12, (1, 1, 1, 1), window_size=2)
    else:
        strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
        backbone = backbone_of(unet_configuration("PlainConvUNet", strides, [4, 4, 8, 8, 8]), "encoder")
    Alice.check(config, backbone)
    method = Alice(backbone, config)
    assert method.block == block_size(backbone, patch, None)
    batch = method.augment(alice_batch(tmp_path, config))
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        output = method(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    used = backbone.used_tensors()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == (name in used), name
    missing = {n for n, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing, "DistributedDataParallel refuses parameters without gradient"
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    if precision == torch.bfloat16:
        # In bf16 the CPU gives weights of convolutions on 1 x 1 x 2 voxels now and then a gradient from memory that
        # nobody wrote (torch 2.15; an `inf` left there comes back); no run computes in bf16 on a CPU.
        gradients = {n: g for n, g in gradients.items() if ".layers4c." not in n}
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.rendered
def test_panels__show_both_crops_with_the_point_the_masks_and_the_targets(tmp_path: Path) -> None:
    config = alice_config()
    method = alice_method(config)
    batch = method.augment({**alice_batch(tmp_path, config), "similarity": torch.tensor([0.9, torch.nan])})
    rows = Alice.panels(batch, config)
    assert len(rows) == 4 and all(len(row) == 3 for row in rows)
    for i in range(2):
        for k in range(2):
            crop, seen, target = rows[2 * i + k]
            assert crop.crop is not None and crop.crop[:2] == (i, k)
            np.testing.assert_array_equal(crop.image, batch["crops"][i, k, 0, 8].numpy())
            assert list(crop.points) == [(1, 8, 12)] and not seen.points
            assert (seen.image == 0).mean() >= 0.5 and set(np.unique(seen.image)) <= {0, *np.unique(crop.image)}
            np.testing.assert_array_equal(target.image, batch["targets"][i, k, 0, 8].numpy())
    assert "0.90" in rows[1][0].title and "similarity" not in rows[3][0].title
    where = Alice.whereabouts(batch, config)
    assert [(w.sample, list(w.crops), w.volume is None) for w in where] == [
        (i, [k], k == 0) for i in range(2) for k in range(2)
    ]
    assert where[1].boxes[0, 0].tolist() == batch["starts"][0, 1].tolist()
    draw_panels(rows, tmp_path / "views.png", "Alice")
    assert (tmp_path / "views.png").stat().st_size > 10_000
    assert [len(row) for row in method.eval().reconstruction(batch)] == [3] * 4


@pytest.mark.parametrize(
    ("option", "value"), [("target_momentum", 1.0), ("across_weight", -1.0), ("head_dim", 0), ("match_draws", 0)]
)
def test_config__refuses(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        alice_config(**{option: value})


def test_check__a_single_pair_cannot_be_normalised() -> None:
    backbone = alice_method(alice_config()).backbone
    for refused in ({}, {"standardise": False}, {"head": "dino"}):
        with pytest.raises(UserError, match="batch_size=2 or more"):
            Alice.check(alice_config(batch_size=1, **refused), backbone)
    for allowed in ({"head": "dino", "standardise": False}, {"objective": "code"}):
        Alice.check(alice_config(batch_size=1, **allowed), backbone)


def test_check__the_codes_casa_needs_the_codes_head() -> None:
    backbone = alice_method(alice_config()).backbone
    with pytest.raises(UserError, match="head=dino"):
        Alice.check(alice_config(casa="code"), backbone)
    for allowed in ({"head": "dino"}, {"objective": "code"}):
        Alice.check(alice_config(casa="code", **allowed), backbone)


def test_step__a_single_pair_has_no_other_to_be_mixed_up_with(tmp_path: Path) -> None:
    config = alice_config(batch_size=1, objective="code")
    method = alice_method(config).eval()
    assert "across_shuffled" not in method.step(method.augment(alice_batch(tmp_path, config))).terms


def test_check__columns_count_as_one() -> None:
    backbone = alice_method(alice_config()).backbone
    with pytest.raises(UserError, match="hides all 2 blocks"):
        Alice.check(alice_config(patch_size=(64, 8, 16), objective="code"), backbone)
    Alice.check(alice_config(patch_size=(64, 8, 16)), backbone)


def test_registry__knows_it() -> None:
    assert get_method("alice") is Alice and Alice.pairs_volumes and Alice.levels == "encoder"

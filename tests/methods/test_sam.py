from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.presets import presets
from nnssl.methods.base import Batch, StepOutput
from nnssl.methods.sam.method import Sam, SamConfig, choose_levels
from nnssl.networks.build import backbone_of, resolve_configuration
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.setup import resolve_sizes
from tests.networks.helpers import unet_configuration
from tests.volumes import CT, MR, Channel, add_volume, make_folder

PATCH = (8, 16, 16)


def _config(**changes: Any) -> SamConfig:
    small = {"batch_size": 2, "patch_size": PATCH, "points_per_pair": 200, "embedding_dim": 8, "fine_queries": 20,
             "fine_ignore_mm": 4.0, "fine_ranked": 100, "fine_negatives": 40, "global_negatives": 30}  # fmt: skip
    return SamConfig(**{**small, **changes})


def _batch(root: Path, config: SamConfig, channels: tuple[Channel, ...] = (CT,), same_volume: bool = False) -> Batch:
    folder, rng, samples = make_folder(root, channels), np.random.default_rng(0), []
    for i in range(config.batch_size or 0):
        coarse = rng.random((len(channels), 5, 8, 8 + i)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
        add_volume(folder, f"case_{i}", coarse + 0.1 * rng.random(coarse.shape))
        volume = folder.open(f"case_{i}", 0 if same_volume else i)
        samples.append(Sam.sample(volume, config, np.random.default_rng(i)))
    return Sam.collate(samples)


def _method(config: SamConfig, channels: int = 1, seed: int = 0) -> Sam:
    torch.manual_seed(seed)
    return Sam(FPN3d(channels, 4, 3), config)


def _train(method: Sam, batch: Batch, steps: int) -> list[StepOutput]:
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.02, 0.9)
    outputs = []
    for _ in range(steps):
        outputs.append(method(batch))
        optimiser.zero_grad()
        outputs[-1].loss.backward()
        optimiser.step()
    return outputs


def test_config__is_the_papers() -> None:
    config = SamConfig()
    assert (config.optimiser, config.learning_rate, config.momentum, config.weight_decay) == ("sgd", 0.02, 0.9, 1e-4)
    assert (config.schedule, config.warmup_steps, config.num_epochs * config.steps_per_epoch) == (
        "constant",
        500,
        20000,
    )
    assert (config.points_per_pair, config.fine_queries, config.fine_ranked, config.fine_negatives) == (
        2000, 100, 2000, 500)  # fmt: skip
    assert (config.coarse_ranked, config.coarse_negatives, config.global_negatives) == (250, 200, 1000)
    assert (config.scale_range, config.temperature, config.embedding_dim) == (0.2, 0.5, 128)


def test_config__more_negatives_than_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="set -o fine_ranked=30 or more"):
        _config(fine_ranked=20, fine_negatives=30)


def test_sample__depends_on_its_generator_alone(tmp_path: Path) -> None:
    config = _config(batch_size=1)
    folder = make_folder(tmp_path, (CT, MR))
    add_volume(folder, "a", np.random.default_rng(0).random((2, 20, 30, 30)))
    samples = [Sam.sample(folder.open("a"), config, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert all(np.array_equal(samples[0][key], samples[1][key]) for key in samples[0])
    assert samples[0]["draw_seed"] != samples[2]["draw_seed"]


def test_augment__noise_is_below_a_thousandth_of_the_window(tmp_path: Path) -> None:
    config = _config(batch_size=1)
    method, folder = _method(config, 2), make_folder(tmp_path, (CT, MR))
    rng = np.random.default_rng(0)
    add_volume(folder, "a", rng.random((2, 20, 30, 30)))
    batches = [Sam.collate([Sam.sample(folder.open("a"), config, np.random.default_rng(seed))]) for seed in range(20)]
    sigma = torch.stack([batch["noise_sigma"][0] for batch in batches])  # (20, 2, 2)
    assert sigma[:, :, 0].max() <= 0.001 * 4095 / CT.std and sigma[:, :, 0].max() > 0.0008 * 4095 / CT.std
    width = batches[0]["noise_sigma"].new_tensor(
        float(np.ptp(np.percentile(folder.open("a").read(np.zeros(3, int), np.array([20, 30, 30]))[1], [0.5, 99.5])))
    )
    assert 0.0008 * width < sigma[:, :, 1].max() <= 0.001 * width * 1.01
    exact = Sam.sample(folder.open("a"), replace(config, noise_sigma_hu=(8.0, 8.0)), np.random.default_rng(0))
    np.testing.assert_allclose(exact["noise_sigma"][:, 0], 8 / CT.std, rtol=1e-6)
    silent = method.augment({**batches[0], "noise_sigma": torch.zeros(1, 2, 2)})["crops"]
    noisy = method.augment(batches[0])["crops"]
    deviation = (noisy - silent).std(dim=(-3, -2, -1))
    torch.testing.assert_close(deviation, batches[0]["noise_sigma"], rtol=0.1, atol=1e-7)


def test_step__overfits_one_batch(tmp_path: Path) -> None:
    config = _config()
    method = _method(config)
    outputs = _train(method, method.augment(_batch(tmp_path, config)), 30)
    first, last = outputs[0], outputs[-1]
    assert first.terms.keys() == {"fine", "coarse", "similarity", "fine_pairs", "coarse_pairs"}
    assert first.embeddings.shape == (80, 8) and 0 < first.terms["fine_pairs"] <= 80
    assert last.terms["fine"] < 0.9 * first.terms["fine"] and last.terms["coarse"] < 0.9 * first.terms["coarse"]
    torch.testing.assert_close(first.loss.detach(), first.terms["fine"] + first.terms["coarse"])


def test_step__draws_from_the_seeds_of_its_samples_alone(tmp_path: Path) -> None:
    config = _config()
    method = _method(config)
    batch = method.augment(_batch(tmp_path, config))
    first = method(batch).loss
    torch.manual_seed(99)
    assert method(batch).loss == first
    assert method({**batch, "draw_seed": batch["draw_seed"] + 1}).loss != first


def test_step__the_order_of_the_volumes_changes_nothing(tmp_path: Path) -> None:
    """Without draws: every cell is a query or a negative."""
    config = _config(batch_size=3, fine_queries=1000, fine_ranked=5000, fine_negatives=5000, coarse_ranked=5000,
                     coarse_negatives=5000, global_negatives=5000)  # fmt: skip
    method = _method(config).eval().double()
    batch = _batch(tmp_path, config)
    views = {k: v.double() if v.is_floating_point() else v for k, v in method.augment(batch).items()}
    order = torch.tensor([2, 0, 1])
    parts = views["points"].split(views["counts"].tolist())
    points = torch.cat([parts[i] for i in order])
    permuted = {k: v[order] if k not in ("points", "places") else v for k, v in views.items()} | {"points": points}
    torch.testing.assert_close(method(permuted).loss, method(views).loss, rtol=1e-9, atol=1e-9)


def test_step__one_volume_has_no_global_negatives(tmp_path: Path) -> None:
    config = _config(batch_size=1)
    method = _method(config)
    batch = method.augment(_batch(tmp_path, config))
    output = method(batch)
    output.loss.backward()
    assert output.loss.isfinite() and output.terms["coarse"] > 0
    none = _method(_config(batch_size=1, global_negatives=0))
    none.load_state_dict(method.state_dict())
    assert none(batch).terms["coarse"] == output.terms["coarse"]


def test_step__a_volume_that_is_in_the_batch_twice_is_no_other_volume(tmp_path: Path) -> None:
    config = _config()
    one, two = (_batch(tmp_path / str(same), config, same_volume=same) for same in (False, True))
    method = _method(config)
    coarse = [method(method.augment(batch)).terms["coarse"] for batch in (one, two)]
    assert coarse[1] < coarse[0]  # the same loss with fewer negatives
    without = _method(_config(global_negatives=0))(method.augment(one)).terms["coarse"]
    torch.testing.assert_close(coarse[1], without)


def test_step__crops_without_a_matched_point_give_an_attached_zero(tmp_path: Path) -> None:
    config = _config(fine_positive_mm=1e-6, coarse_positive_mm=1e-6)
    method = _method(config)
    batch = method.augment(_batch(tmp_path, config))
    batch |= {"points": batch["points"][:0], "counts": torch.zeros(2, dtype=torch.long)}
    output = method(batch)
    assert output.loss == 0 and output.embeddings.shape == (0, 8)
    output.loss.backward()
    gradients = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_step__the_plans_network_is_decoded_to_the_fine_level_and_every_parameter_has_a_gradient(
    tmp_path: Path, kind: str
) -> None:
    config = _config(patch_size=(8, 32, 32))
    resolved = unet_configuration(kind, [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [4, 8, 8])
    torch.manual_seed(0)
    method = Sam(backbone_of(resolved, "decoder"), config)
    assert method.heads["fine"].stride == (1, 2, 2) and method.heads["coarse"].stride == (2, 4, 4)
    pyramid = method.backbone(torch.randn(1, 1, 8, 32, 32))
    assert [level.numel() > 0 for level in pyramid] == [False, True, True]
    method(method.augment(_batch(tmp_path, config))).loss.backward()
    silent = {name for name, p in method.named_parameters() if p.grad is None}
    assert silent == {name for name, p in method.named_parameters() if not p.requires_grad}
    assert {name.split(".")[3] for name in silent} == {"stages", "transpconvs", "seg_layers"}
    whole = backbone_of(resolved, "decoder")
    whole.load_state_dict(method.backbone.state_dict())
    for mine, theirs in zip(pyramid[1:], whole.eval()(torch.randn(1, 1, 8, 32, 32))[1:], strict=True):
        assert mine.shape == theirs.shape


def test_choose_levels__as_the_code_where_the_network_is_as_deep() -> None:
    config = _config(patch_size=(32, 96, 96))
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2], [1, 1, 1]]
    backbone = backbone_of(unet_configuration("PlainConvUNet", strides, [4, 4, 4, 4, 4, 4]), "decoder")
    fine, coarse = choose_levels(config, backbone)
    assert backbone.strides[fine] == (2, 2, 2) and backbone.strides[coarse] == (4, 16, 16)
    assert choose_levels(_config(fine_level=0, coarse_level=2), backbone) == (0, 2)
    assert choose_levels(_config(patch_size=(4, 4, 4)), backbone) == (1, 2)  # the next one where none is fine enough
    for wrong in ({"fine_level": 2, "coarse_level": 2}, {"coarse_level": 9}, {"fine_level": 5}):
        with pytest.raises(UserError, match=r"levels 0 to 5"):
            choose_levels(_config(**wrong), backbone)


def test_preset__has_the_codes_patch_window_and_strides() -> None:
    plans = json.loads(presets()["nnsslPlans_sam"].read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert (configuration["spacing"], configuration["batch_size"]) == ([2.0, 2.0, 2.0], 3)
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    hu = np.array([window["percentile_00_5"], window["percentile_99_5"]])
    np.testing.assert_array_equal(hu, [-1024, 3071])
    np.testing.assert_allclose((hu - window["mean"]) / window["std"], [-50, 205])
    config = resolve_sizes(SamConfig(), resolve_configuration(plans, "3d_fullres"), 1)
    assert isinstance(config, SamConfig) and config.patch_size == (32, 96, 96)
    with torch.device("meta"):
        backbone = backbone_of(resolve_configuration(plans, "3d_fullres"), "decoder")
        heads = Sam.encoding_heads(config, backbone)
    Sam.check(config, backbone)
    assert heads["fine"].stride == (2, 2, 2) and heads["coarse"].stride == (4, 16, 16)


def test_check__a_network_of_one_level_is_refused() -> None:
    with pytest.raises(UserError, match="more stages"):
        Sam.check(_config(), FPN3d(1, 4, 1))

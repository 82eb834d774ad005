"""Two processes that talk over gloo do all checks in one go (their start takes seconds) and hand back what they got."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from nnssl.core.distributed import all_reduce_sum, gather_rows, is_main, rank, row_counts, world_size
from nnssl.finetuning.partial_label_loss import PartialLabelLoss
from nnssl.methods.shared.info_nce import info_nce
from nnssl.networks.contrastive import BatchNormHead
from nnssl.networks.sync_batch_norm import SyncBatchNorm1d, SyncBatchNorm3d, synchronise_batch_norm

WORLD = 2
CUT = 3  # rank 0 has the first 3 rows, rank 1 the others
ROWS = 8
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "3d": (lambda: nn.BatchNorm3d(4), (4, 2, 3, 2)),
    "plain_average": (lambda: nn.BatchNorm1d(4, momentum=None, affine=False), (4,)),
    "no_statistics": (lambda: nn.BatchNorm3d(4, track_running_stats=False), (4, 2, 2, 2)),
    "nested": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.Linear(4, 3)),
        (5,),
    ),
    "head": (lambda: BatchNormHead((5, 6, 6, 4)), (3, 5)),  # of three tokens
}
LOSSES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "excluded": {"exclude_radius_mm": 2.0},
    "chunked": {"chunk_rows": 4},
}


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(x: Tensor, this: int, at: int = CUT) -> Tensor:
    return x[:at] if this == 0 else x[at:]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().double()


def run_network(network: nn.Module, batches: list[Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """Two training steps, whose loss is a weighted sum of the output, then evaluation."""
    result: dict[str, Tensor] = {}
    for step, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
        x = batch.clone().requires_grad_()
        y = network(x)
        (y * weight).sum().backward()
        assert x.grad is not None
        result |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    result |= {f"d{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    result |= {f"buffer {name}": b.clone() for name, b in network.named_buffers()}
    return result | {"evaluated": network.eval()(batches[0]).detach()}


def network_data(name: str) -> tuple[list[Tensor], list[Tensor]]:
    batches = [3 + 2 * data(ROWS, *NETWORKS[name][1], seed=step) for step in (1, 2)]
    with torch.no_grad():
        weights = [data(*built(name)(batch).shape, seed=step + 10) for step, batch in enumerate(batches)]
    return batches, weights


def loss_data(cut_at: int = CUT) -> tuple[Tensor, Tensor, Tensor]:
    places = torch.tensor([[0, 0, 0, i] for i in range(4)] + [[1, 0, 0, i] for i in range(4)], dtype=torch.float64)
    return data(ROWS, 6, seed=5), data(ROWS, 6, seed=5) + data(ROWS, 6, seed=6), places


def loss_and_gradients(this: int | None, settings: dict[str, Any], at: int = CUT) -> list[Tensor]:
    """The loss and its gradient for a linear layer and for the vectors, of this rank's rows or (None) of all."""
    h1, h2, places = loss_data() if this is None else (cut(t, this, at) for t in loss_data())
    weight = data(6, 6, seed=7).requires_grad_()
    h1 = h1.clone().requires_grad_()
    settings = settings | ({"sources": places} if "exclude_radius_mm" in settings else {})
    loss = info_nce(h1 @ weight, h2 @ weight, **settings)
    loss.backward()
    assert weight.grad is not None and h1.grad is not None
    return [loss.detach(), weight.grad, h1.grad]


def batch_dice_and_gradient(this: int | None, kind: str) -> list[Tensor]:
    """The Dice of this rank's three cases of six or (None) of all; of partial labels, of complete ones, of nnU-Net."""
    annotated = torch.tensor([[True, True, False], [True, False, False], [True, False, True]] * 2)
    if kind != "partial":
        annotated.fill_(True)
    logits, labels = data(6, 3, 2, 2, 2, seed=8), (data(6, 1, 2, 2, 2, seed=9) > 0).long()
    logits, labels, annotated = (t if this is None else cut(t, this) for t in (logits, labels, annotated))
    logits = logits.float().requires_grad_()
    ddp = this is not None
    if kind == "nnunet":
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
        from nnunetv2.utilities.helpers import softmax_helper_dim1

        loss = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, batch_dice=True, do_bg=False, smooth=1e-5, ddp=ddp)(
            logits, labels
        )
    else:
        loss = PartialLabelLoss(batch_dice=True, ddp=ddp, weight_ce=0)(logits, labels, annotated)
    loss.backward()
    assert logits.grad is not None
    return [loss.detach(), logits.grad]


def _rows_of_one_rank(this: int) -> tuple[list[Tensor], list[Tensor]]:
    """The batches of "nested", all of whose rows are on rank 1."""
    batches, weights = network_data("nested")
    return [cut(b, this, 0) for b in batches], [cut(w, this, 0) for w in weights]


def on_one_rank(this: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=this, world_size=WORLD)
    out: dict[str, Any] = {"asked": (world_size(), rank(), is_main())}
    x = cut(data(ROWS, 2, 3), this).requires_grad_()
    out["counts"] = row_counts(x)
    out["gathered"] = gather_rows(x)
    (out["gathered"] * data(ROWS, 2, 3, seed=this + 1)).sum().backward()
    out["gathered"], out["dx"] = out["gathered"].detach(), x.grad
    out["integers"] = gather_rows(torch.arange(4) if this == 0 else torch.arange(0))
    out["booleans"] = gather_rows(torch.tensor([this == 0]), counts=[1, 1])
    y = torch.tensor([1.0, 2.0]).mul(this + 1).requires_grad_()
    out["reduced"] = all_reduce_sum(y)
    (out["reduced"] * torch.tensor([1.0, 10.0 * this])).sum().backward()
    out["reduced"], out["dy"] = out["reduced"].detach(), y.grad
    for name in NETWORKS:
        batches, weights = network_data(name)
        network = synchronise_batch_norm(built(name))
        out[name] = run_network(network, [cut(b, this) for b in batches], [cut(w, this) for w in weights])
    out["no rows here"] = synchronise_batch_norm(built("1d"))(cut(data(ROWS, 4), this, 0)).detach()
    out["one rank's rows"] = run_network(synchronise_batch_norm(built("nested")), *_rows_of_one_rank(this))
    empty = synchronise_batch_norm(built("1d"))
    out["no rows"] = run_network(empty, [torch.zeros(0, 4, dtype=torch.float64)] * 2, [torch.zeros(0, 4)] * 2)
    out["half"] = synchronise_batch_norm(nn.BatchNorm3d(4))(cut(data(ROWS, 4, 2, 2, 2), this).bfloat16()).detach()
    try:
        synchronise_batch_norm(built("1d"))(cut(data(1, 4), this, 1))
    except ValueError as error:
        out["one row"] = str(error)
    for name, settings in LOSSES.items():
        out[f"loss {name}"] = loss_and_gradients(this, settings)
    out["loss of this rank"] = loss_and_gradients(this, {"across_ranks": False})
    out["loss without rows here"] = loss_and_gradients(this, {}, at=0)
    for kind in ("partial", "complete", "nnunet"):
        out[f"batch dice {kind}"] = batch_dice_and_gradient(this, kind)
    torch.save(out, f"{folder}/{this}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(on_one_rank, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{this}.pt", weights_only=True) for this in range(WORLD)]


def both(ranks: list[dict[str, Any]], *keys: str) -> Tensor:
    parts: Any = ranks
    for key in keys:
        parts = [part[key] for part in parts]
    return torch.cat(parts)


def test_world_size__rank_and_main(ranks: list[dict[str, Any]]) -> None:
    assert [out["asked"] for out in ranks] == [(2, 0, True), (2, 1, False)]
    assert (world_size(), rank(), is_main()) == (1, 0, True)
    assert [out["counts"] for out in ranks] == [[3, 5], [3, 5]]


def test_gather_rows__ragged_with_gradient(ranks: list[dict[str, Any]]) -> None:
    for out in ranks:
        assert torch.equal(out["gathered"], data(ROWS, 2, 3))
    torch.testing.assert_close(both(ranks, "dx"), data(ROWS, 2, 3, seed=1) + data(ROWS, 2, 3, seed=2))


def test_gather_rows__integers_booleans_and_no_rows(ranks: list[dict[str, Any]]) -> None:
    for out in ranks:
        assert out["integers"].tolist() == [0, 1, 2, 3]
        assert out["booleans"].tolist() == [True, False]


def test_gather_rows__one_process_is_identity() -> None:
    x = torch.ones(2, 3)
    assert gather_rows(x) is x and all_reduce_sum(x) is x and row_counts(x) == [2]
    with pytest.raises(ValueError, match="axis"):
        gather_rows(torch.tensor(1.0))


def test_all_reduce_sum__with_gradient(ranks: list[dict[str, Any]]) -> None:
    for out in ranks:
        assert out["reduced"].tolist() == [3.0, 6.0]
        assert out["dy"].tolist() == [2.0, 10.0]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_synchronise_batch_norm__equals_one_process_with_all_rows(ranks: list[dict[str, Any]], name: str) -> None:
    expected = run_network(built(name), *network_data(name))
    assert expected.keys() == ranks[0][name].keys()
    for key, value in expected.items():
        if key.startswith("buffer"):
            for out in ranks:
                torch.testing.assert_close(out[name][key], value)
        elif key.startswith(("y", "dx")):
            torch.testing.assert_close(both(ranks, name, key), value)
        elif key.startswith("d"):  # each rank has its share of a parameter's gradient
            torch.testing.assert_close(ranks[0][name][key] + ranks[1][name][key], value)
        elif name != "no_statistics":
            torch.testing.assert_close(both(ranks, name, key), value)


def test_synchronise_batch_norm__a_rank_without_rows(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["no rows here"].shape == (0, 4)
    torch.testing.assert_close(ranks[1]["no rows here"], built("1d")(data(ROWS, 4)).detach())


def test_synchronise_batch_norm__all_rows_on_one_rank_and_the_gradient_too(ranks: list[dict[str, Any]]) -> None:
    expected = run_network(built("nested"), *network_data("nested"))
    mine, others = ranks[1]["one rank's rows"], ranks[0]["one rank's rows"]
    for key, value in expected.items():
        torch.testing.assert_close(mine[key], value)
        if key.startswith("buffer"):
            torch.testing.assert_close(others[key], value)
        elif not key.startswith(("y", "dx", "evaluated")):
            assert key.startswith("d") and not others[key].any(), "a rank without rows has no share of the gradient"


def test_synchronise_batch_norm__no_rows_at_all_leave_the_statistics_alone(ranks: list[dict[str, Any]]) -> None:
    before = {f"buffer {name}": b for name, b in built("1d").named_buffers() if "running" in name}
    for out in ranks:
        got = out["no rows"]
        assert before and all(torch.equal(got[name], value) for name, value in before.items())
        assert got["y0"].shape == (0, 4) and not got["dweight"].any() and not got["dbias"].any()


def test_synchronise_batch_norm__half_precision(ranks: list[dict[str, Any]]) -> None:
    expected = nn.BatchNorm3d(4)(data(ROWS, 4, 2, 2, 2).bfloat16().float()).detach()
    assert both(ranks, "half").dtype == torch.bfloat16
    torch.testing.assert_close(both(ranks, "half").float(), expected, rtol=1e-2, atol=1e-2)


def test_synchronise_batch_norm__one_row_in_total_is_refused(ranks: list[dict[str, Any]]) -> None:
    for out in ranks:
        assert out["one row"].startswith("Expected more than 1 value per channel")


def test_synchronise_batch_norm__one_process() -> None:
    plain, converted = built("nested"), built("nested")
    parameters = list(converted.parameters())
    assert synchronise_batch_norm(converted) is converted
    assert isinstance(converted[1][0], SyncBatchNorm1d)  # type: ignore[index]
    assert isinstance(synchronise_batch_norm(nn.BatchNorm3d(2)), SyncBatchNorm3d)
    assert plain.state_dict().keys() == converted.state_dict().keys()
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    batches, weights = network_data("nested")
    expected, got = run_network(plain, batches, weights), run_network(converted, batches, weights)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    with pytest.raises(ValueError, match="more than 1 value"):
        synchronise_batch_norm(nn.BatchNorm1d(4))(torch.ones(1, 4))


@pytest.mark.parametrize("name", [*LOSSES, "without rows here"])
def test_info_nce__mean_over_ranks_is_the_loss_of_all_rows(ranks: list[dict[str, Any]], name: str) -> None:
    expected = loss_and_gradients(None, LOSSES.get(name, {}))
    got = [out[f"loss {name}"] for out in ranks]
    torch.testing.assert_close((got[0][0] + got[1][0]) / WORLD, expected[0])
    # DistributedDataParallel averages a weight's gradient over the ranks.
    torch.testing.assert_close((got[0][1] + got[1][1]) / WORLD, expected[1])
    torch.testing.assert_close(torch.cat([got[0][2], got[1][2]]) / WORLD, expected[2])


def test_info_nce__of_one_rank_is_the_loss_of_its_rows(ranks: list[dict[str, Any]]) -> None:
    for this, out in enumerate(ranks):
        h1, h2, _ = (cut(t, this) for t in loss_data())
        weight = data(6, 6, seed=7)
        torch.testing.assert_close(out["loss of this rank"][0], info_nce(h1 @ weight, h2 @ weight))


@pytest.mark.parametrize("kind", ["partial", "complete"])
def test_partial_label_loss__batch_dice_is_that_of_all_ranks(ranks: list[dict[str, Any]], kind: str) -> None:
    dice, gradient = batch_dice_and_gradient(None, kind)
    for this, out in enumerate(ranks):
        torch.testing.assert_close(out[f"batch dice {kind}"][0], dice)
        # the gradient of the sum of both ranks' losses, of which DistributedDataParallel takes the mean
        torch.testing.assert_close(out[f"batch dice {kind}"][1], 2 * cut(gradient, this))
        if kind == "complete":
            for value, of_nnunet in zip(out["batch dice complete"], out["batch dice nnunet"], strict=True):
                torch.testing.assert_close(value, of_nnunet)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import LATEST
from nnssl.checkpoints.pretrained import Pretrained
from nnssl.checkpoints.runs import RunFilter, checkpoint_of, choose_pretraining, open_run, source_name
from nnssl.core.errors import UserError
from nnssl.data.loader import Cases
from nnssl.methods import registry
from nnssl.methods.options import from_plain
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.setup import Setup
from tests.pretrainings import CT_JSON, finish_pretraining, tiny_plans, write_pretraining

SOURCE = "Dataset500_Source"


def _finish(results: Path, plans: dict[str, Any] | None = None, **options: Any) -> Path:
    return finish_pretraining(results, SOURCE, plans or tiny_plans(), CT_JSON, **options)


def _choose(results: Path, **wanted: Any) -> Pretrained:
    return choose_pretraining(results, SOURCE, 17, RunFilter(**wanted))


def test_choose_pretraining__the_only_one(tmp_path: Path) -> None:
    run = _finish(tmp_path)
    interrupted = run.with_name("fold_3")
    interrupted.mkdir()
    (interrupted / LATEST).write_bytes((run / "checkpoint_final.pth").read_bytes())
    (run.parent.parent / "nnUNetTrainer__nnUNetPlans__3d_fullres").mkdir()
    for wanted in ({}, {"method": "vox2vec"}, {"method": "random"}, {"fold": "all", "plans": "nnsslPlans_tiny"}):
        assert _choose(tmp_path, **wanted).path == run / "checkpoint_final.pth"


def test_choose_pretraining__several_are_listed_with_the_lines_to_type(tmp_path: Path) -> None:
    _finish(tmp_path)
    other = _finish(tmp_path, fold="0")
    wide = _finish(tmp_path, tiny_plans("wide", batch_size=4))
    with pytest.raises(UserError) as error:
        _choose(tmp_path, method="vox2vec")
    assert str(error.value).splitlines() == [
        "Dataset500_Source has 3 finished pretrainings; type one of:",
        "  nnssl_transfer -s 500 -t 17 -m vox2vec -p nnsslPlans_tiny -c 3d_fullres -f 0",
        "  nnssl_transfer -s 500 -t 17 -m vox2vec -p nnsslPlans_tiny -c 3d_fullres -f all",
        "  nnssl_transfer -s 500 -t 17 -m vox2vec -p wide -c 3d_fullres -f all",
    ]
    assert _choose(tmp_path, plans="wide").path.parent == wide
    assert _choose(tmp_path, plans="nnsslPlans_tiny", fold="0").path.parent == other
    with pytest.raises(UserError, match=r"(?s)-m, -p, -c and -f; type one of:.*-p wide"):
        _choose(tmp_path, fold="7")

    # Random weights need a network only: both folds have the same one.
    assert _choose(tmp_path, method="random", plans="nnsslPlans_tiny").plans == tiny_plans()
    with pytest.raises(UserError, match=r"(?s)differ in plans or levels.*-m random:vox2vec -p wide -c 3d_fullres"):
        _choose(tmp_path, method="random")


def test_choose_pretraining__random_of_methods_with_other_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(registry.get_method("vox2vec")):  # type: ignore[misc]
        levels = "encoder"

    monkeypatch.setitem(globals(), "Other", Other)
    monkeypatch.setitem(registry._METHODS, "other", f"{__name__}:Other")
    _finish(tmp_path)
    _finish(tmp_path, method="other")
    with pytest.raises(UserError, match=r"(?s)levels.*-m random:other .*-m random:vox2vec "):
        _choose(tmp_path, method="random")
    chosen = _choose(tmp_path, method="random:other")
    assert (chosen.method, chosen.levels) == ("other", "encoder")


def test_choose_pretraining__none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished pretraining.*nnssl_pretrain -d 500 -m vox2vec"):
        _choose(tmp_path)
    with pytest.raises(UserError, match=r"no method 'nothing'"):
        _choose(tmp_path, method="nothing")
    with pytest.raises(UserError, match=r"no method 'nothing'"):
        _choose(tmp_path, method="random:nothing")


def test_source_name__only_the_results_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    _finish(tmp_path / "results")
    assert source_name(500, tmp_path / "results") == source_name(SOURCE, tmp_path / "results") == SOURCE
    with pytest.raises(UserError, match="there is no dataset 501"):
        source_name("501", tmp_path / "results")


def test_numbers_of_four_digits__are_other_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net looks for names that begin with Dataset150, and would find both."""
    for name, fold in (("Dataset150_Knee", "all"), ("Dataset1500_Hip", "all"), ("Dataset1500_Hip", "0")):
        finish_pretraining(tmp_path, name, tiny_plans(), CT_JSON, fold=fold)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert [source_name(d, tmp_path) for d in (150, "1500", "Dataset1500_Hip")] == [
        "Dataset150_Knee", "Dataset1500_Hip", "Dataset1500_Hip"
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"\n  nnssl_transfer -s Dataset1500_Hip -t 17 .* -f 0\n"):
        choose_pretraining(tmp_path, "Dataset1500_Hip", 17, RunFilter())


def test_finished_pretrainings__of_a_dataset_with_signs_of_patterns(tmp_path: Path) -> None:
    run = finish_pretraining(tmp_path, "Dataset500_a[1]", tiny_plans(), CT_JSON)
    assert choose_pretraining(tmp_path, "Dataset500_a[1]", 17, RunFilter()).path.parent == run


def test_checkpoint_of__a_run_a_fold_and_a_file(tmp_path: Path) -> None:
    checkpoint = write_pretraining(tmp_path, tiny_plans(), method="vox2vec")
    assert checkpoint_of(checkpoint) == checkpoint_of(checkpoint.parent) == checkpoint
    assert checkpoint_of(checkpoint.parent.parent) == checkpoint
    with pytest.raises(UserError, match="holds no finished run"):
        checkpoint_of(tmp_path)
    write_pretraining(tmp_path, tiny_plans(), method="vox2vec", fold="0")
    with pytest.raises(UserError, match=r"holds 2 finished runs .*fold_0.*fold_all"):
        checkpoint_of(checkpoint.parent.parent)


@pytest.mark.parametrize("method", ["vox2vec", "sam"])
def test_open_run__random_weights_are_those_that_the_run_began_with(tmp_path: Path, method: str) -> None:
    checkpoint = write_pretraining(tmp_path, tiny_plans(), method=method)
    trained, before = open_run(checkpoint.parent), torch.get_rng_state()
    random, again = open_run(f"random:{checkpoint.parent}"), open_run(f"random:{checkpoint}")
    assert torch.equal(torch.get_rng_state(), before)
    assert (trained.is_random, trained.title) == (False, method)
    assert (random.is_random, random.title) == (True, f"{method} with random weights")
    assert random.checkpoint == trained.checkpoint == checkpoint
    state, same, learned = (run.content["method_state"] for run in (random, again, trained))
    assert state.keys() == learned.keys()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert any(not torch.equal(state[name], learned[name]) for name in state)
    config = from_plain(registry.get_method(method).config_class, random.content["config"])
    torch.manual_seed(config.seed)
    nobody = Cases.of([], [])
    resolved = resolve_configuration(random.content["plans"], "3d_fullres")
    fresh = Setup(method, config, random.content["plans"], CT_JSON, {}, "3d_fullres", "all", nobody, nobody,
                  tmp_path, resolved=resolved).build_method().state_dict()  # fmt: skip
    assert all(torch.equal(state[name], fresh[name]) for name in state)
    kept = random.content.keys() - {"method_state", "epoch"}
    assert all(random.content[name] == trained.content[name] for name in kept)


@pytest.mark.parametrize("run", ["random", "random:"])
def test_open_run__random_names_its_run(run: str) -> None:
    with pytest.raises(UserError, match="type random:RUN"):
        open_run(run)
    with pytest.raises(UserError, match="there is no checkpoint nowhere"):
        open_run("random:nowhere")

"""docs/results.md and the CSV files that it is made from, and the commands that make those."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnssl.pretraining.folder import lock_of

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HEADER = "method,percent,labelled_cases,seed,case,structure,dice,nsd"


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generator with folders of the test's own."""
    module = _module("pays_page", monkeypatch)
    for name, place in (("PAGE", "results.md"), ("FIGURES", "figures"), ("SCORES", "scores")):
        monkeypatch.setattr(module, name, tmp_path / place)
    (tmp_path / "figures").mkdir()
    (tmp_path / "scores").mkdir()
    return module


def write_results(file: Path, dice: dict[str, float], cases: int = 8, seeds: int = 3) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{method},6.66667,4,{seed},case_{case},{structure},{value + 0.01 * case},0.5"
            for method, value in dice.items() for seed in range(seeds) for case in range(cases)
            for structure in ("anterior", "posterior")]  # fmt: skip
    file.write_text("\n".join([HEADER, *rows]) + "\n")


def write_probe(folder: Path, seed: int, method: str = "vox2vec", final: bool = True) -> None:
    fold = folder / f"seed_{seed}" / "Dataset502_Any" / f"nnssl_{method}__plans__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    dice = [0.1, 0.3 + 0.1 * seed, None, 0.39 + 0.1 * seed]
    epochs = [{"epoch": i + 1, "step": 24 * (i + 1)} for i in range(4)]
    probed = [
        {**e, "probe_linear_dice": d, "probe_nonlinear_dice": d} if d else e for e, d in zip(epochs, dice, strict=True)
    ]
    if final:
        (fold / "checkpoint_final.pth").touch()
    (fold / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in probed))


def test_page__agrees_with_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("pays_page", monkeypatch)
    text = module.PAGE.read_text()
    assert module.page(text) == text, "type: python benchmarks/does_it_pay.py --write_docs"
    assert text.count("<!-- table ") == len(module.TABLES)


def test_write_docs__tables_and_figures_of_what_was_run(page: ModuleType, tmp_path: Path) -> None:
    page.PAGE.write_text("before\n<!-- table 017 -->\nold\n<!-- end -->\nbetween\n<!-- probe 502 -->\n<!-- end -->\n")
    write_results(tmp_path / "out" / "017" / "results" / "results.csv", {"random": 0.2, "vox2vec": 0.4, "mine": 0.1})
    for seed in (0, 1):
        write_probe(tmp_path / "out" / "pretrained", seed)
    write_probe(tmp_path / "out" / "pretrained", 0, "voco", final=False)
    page.write_docs(tmp_path / "out")
    text = page.PAGE.read_text()
    assert text.startswith("before\n<!-- table 017 -->\n") and "\nold\n" not in text and "between" in text
    assert "| random | 0.235 ± 0.000 | 0.235 ± 0.000 | 0.235 ± 0.000 |  |" in text
    won = "**0.435 ± 0.000**"
    assert f"| vox2vec | {won} | {won} | {won} | +0.200 [+0.200, +0.200], 3 of 3 seeds |" in text
    assert "| mine | 0.135" in text and "| voco |  |  |  | not run |" in text
    assert "| *floor: mean shape* | 0.740 | 0.710 | 0.725 |  |" in text
    assert "| vox2vec | 2 | 0.100 ± 0.000 | 0.350 ± 0.071 | 0.440 ± 0.071 | 0.440 ± 0.071 | 96 of 96 |" in text
    assert "| voco | | | | | | not run |" in text
    assert {f.name for f in page.FIGURES.iterdir()} == {"results_017.png", "results_probe_502.png"}
    page.write_docs(None)
    assert page.PAGE.read_text() == text


def test_write_docs__adds_trainings_to_those_that_are_there(page: ModuleType, tmp_path: Path) -> None:
    kept, new = page.scores_file("017"), tmp_path / "new.csv"
    write_results(kept, {"random": 0.2, "vox2vec": 0.4})
    write_results(new, {"vox2vec": 0.5, "mae": 0.3}, cases=2)
    page.add_scores(new, kept)
    rows = list(csv.DictReader(kept.open()))
    count = {m: sum(row["method"] == m for row in rows) for m in ("random", "vox2vec", "mae")}
    assert count == {"random": 48, "vox2vec": 12, "mae": 12}
    assert {float(r["dice"]) for r in rows if r["method"] == "vox2vec"} == {0.5, 0.51}


def test_table_text__few_cases_have_no_interval(page: ModuleType, tmp_path: Path) -> None:
    write_results(page.scores_file("017"), {"random": 0.2, "vox2vec": 0.4}, cases=4, seeds=2)
    text = page.table_text(page.TABLES["017"])
    assert "No interval and no winner: 4 of at least 8 test cases." in text and "**0" not in text
    assert "| vox2vec (2 of 3 seeds) | 0.415 ± 0.000 | 0.415 ± 0.000 | 0.415 ± 0.000 | +0.200, 2 of 2 seeds |" in text
    assert "Not run." in page.table_text(page.TABLES["018"])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Table 017 in a folder without anything."""
    module = _module("does_it_pay", monkeypatch)
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
        for dataset in ("Dataset502_Many", "Dataset017_Few"):
            (tmp_path / name / dataset).mkdir(parents=True)
    return module.Job(module.TABLES["017"], tmp_path / "out", "cpu")


def test_commands__what_is_left(job: Any, tmp_path: Path) -> None:
    lines = list(sys.modules["does_it_pay"].commands(job))
    pretrain = [line for line in lines if "nnssl_pretrain" in line]
    untrained = [line for line in pretrain if "/out/untrained/" in line]
    assert len(untrained) == 2 * 3 and all("learning_rate=1e-12" in line for line in untrained)
    assert len(pretrain) == 9 * 3 and pretrain[0] == (
        f"nnUNet_results={tmp_path}/out/pretrained/seed_0 nnssl_pretrain -d 502 -m vox2vec -p nnsslPlans_tiny32 "
        "-device cpu -probe 17 -probe_every 1 -o patch_size=16,32,32 batch_size=4 steps_per_epoch=24 "
        "val_steps_per_epoch=2 num_epochs=10 learning_rate=1e-3 seed=0")  # fmt: skip
    run = job.run("vox2vec", 0)
    run.mkdir(parents=True)
    (run / "checkpoint_latest.pth").touch()
    assert any(line.endswith("seed=0 --c") for line in sys.modules["does_it_pay"].commands(job))
    (run / "checkpoint_final.pth").touch()
    assert sum("nnssl_pretrain" in line for line in sys.modules["does_it_pay"].commands(job)) == 26
    fold = (
        f"{tmp_path}/out/pretrained/seed_{{seed}}/Dataset502_Many/nnssl_vox2vec__nnsslPlans_tiny32__3d_fullres/fold_all"
    )
    assert (
        f"vox2vec=nnUNetTrainer_SSLUNetFinetune,nnsslPlans_tiny32From502_vox2vec,{fold},nnssl_num_epochs=8" in lines[-1]
    )


def test_ready__rows_whose_pretrainings_are_finished(job: Any) -> None:
    for method, seeds in (("vox2vec", (0,)), ("voco", (0, 1, 2))):
        for seed in seeds:
            job.run(method, seed).mkdir(parents=True)
            (job.run(method, seed) / "checkpoint_final.pth").touch()
    assert [row.name for row in job.ready()] == [
        "random", "scratch", "voco", "random_long", "scratch_long", "voco_long"]  # fmt: skip
    one = replace(job, table=replace(job.table, seeds=1))
    assert "vox2vec" in [row.name for row in one.ready()]


def test_hold_out__last_quarter_of_a_dataset_that_is_also_pretrained_on(job: Any, tmp_path: Path) -> None:
    module = sys.modules["does_it_pay"]
    labels = tmp_path / "raw" / "Dataset017_Few" / "labelsTr"
    labels.mkdir()
    for number in range(9):
        (labels / f"case_{number}.nii.gz").touch()
    file = tmp_path / "preprocessed" / "Dataset017_Few" / "splits_final.json"
    module.hold_out(job)
    module.hold_out(job)
    assert json.loads(file.read_text()) == [
        {"train": [f"case_{i}" for i in range(7)], "val": ["case_7", "case_8"]},
    ]
    file.write_text(json.dumps([{"train": ["case_8"], "val": ["case_0"]}]))
    with pytest.raises(module.UserError, match="holds out other cases than case_7, case_8"):
        module.hold_out(job)


def test_link_unlabelled__volumes_of_the_pretraining_beside_the_labels(job: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "Dataset017_Few" / "labelsTr").mkdir()
    (raw / "Dataset502_Many" / "imagesTr").mkdir()
    for _ in range(2):
        sys.modules["does_it_pay"].link_unlabelled(job)
    folder = tmp_path / "out" / "raw" / "Dataset017_Few"
    assert {f.name: f.resolve() for f in folder.iterdir()} == {
        "labelsTr": raw / "Dataset017_Few" / "labelsTr", "imagesUn": raw / "Dataset502_Many" / "imagesTr"}  # fmt: skip


def test_set_patch__changes_nothing_else(tmp_path: Path, job: Any) -> None:
    plans = tmp_path / "plans.json"
    content = {"plans_name": "p", "configurations": {"3d_fullres": {"patch_size": [32, 48, 48], "batch_size": 2}}}
    plans.write_text(json.dumps(content))
    sys.modules["does_it_pay"].set_patch(plans, (32, 32, 32))
    content["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]  # type: ignore[index]
    assert json.loads(plans.read_text()) == content


def test_chosen__rows_seeds_and_the_shortest_form(job: Any) -> None:
    module = sys.modules["does_it_pay"]
    table = module.chosen(module.TABLES["017"], ["vox2vec", "random"], 2, trial=True)
    assert [row.name for row in table.rows] == ["random", "vox2vec"] and table.seeds == 2 and table.cases == (4,)
    assert table.rows[0].settings["nnssl_num_epochs"] == "1" and "num_epochs=1 " in table.pretrainings["vox2vec"]
    with pytest.raises(module.UserError, match="has no row nobody; its rows are random, scratch"):
        module.chosen(module.TABLES["017"], ["nobody"], None, trial=False)


def test_planning__volumes_of_every_raw_case(job: Any, tmp_path: Path) -> None:
    raw, home = tmp_path / "raw" / "Dataset502_Many" / "imagesTr", tmp_path / "preprocessed" / "Dataset502_Many"
    folder = home / "nnsslPlans_tiny32_3d_fullres"
    for path in (raw, folder):
        path.mkdir()
    (home / "nnsslPlans_tiny32.json").touch()
    for case in ("a_1", "b"):
        (raw / f"{case}_0000.nii.gz").touch()
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        (folder / f"a_1{ending}").touch()
    plan, volumes = job.planning()
    assert (plan.state(), volumes.state()) == ("finished", "missing")
    orientation: dict[str, Any] = {"counts": {}, "majority": None, "different": {}}
    report = {"left_out": {"b": "cut"}, "orientation": orientation, "warnings": {}, "ignored": {}}
    (home / "nnsslPlans_tiny32_left_out.json").write_text(json.dumps(report))
    assert volumes.state() == "finished"


def test_make__leaves_what_is_running_alone_and_parts_share_the_same_rows(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, began = sys.modules["does_it_pay"], []
    with pytest.raises(module.UserError, match="are made by part 0"):
        module.make(replace(job, num_parts=2, part_id=1))
    monkeypatch.setattr(module, "run_task", lambda task: began.append(task.key))
    monkeypatch.setattr(module, "set_patch", lambda *_: None)
    monkeypatch.setattr(module, "train", lambda _: pytest.fail("rows are missing"))
    run = job.run("vox2vec", 0)
    run.parent.mkdir(parents=True)
    with lock_of(run), pytest.raises(module.UserError, match="share the trainings of all rows"):
        module.make(replace(job, num_parts=2))
    assert "pretrain_vox2vec_nnsslPlans_tiny32_0" not in began and "pretrain_voco_nnsslPlans_tiny32_0" in began

"""The README as it stands, then what docs/walk.md has beyond it, in one shell; then what must hold of the output."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.docs import pages
from tests.phantoms import ct_volume, write_ct_dataset, write_volume
from tests.shell import Walk, volume

ROOT = Path(__file__).parent.parent
README, WALK = (ROOT / name for name in ("README.md", "docs/walk.md"))
SOURCE, TARGET = "Dataset500_Thorax", "Dataset017_Organs"
PLANS = "nnsslPlans_tinyFrom500_vox2vec"
MODEL = f"nnUNetTrainer_Vox2vecProbe__{PLANS}__3d_fullres"
INSTALLATION = "pip install .\n"  # tests/test_installation.py does it


def model(walk: Walk) -> Path:
    return walk.folder / "nnUNet_results" / TARGET / MODEL


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [block.text for block in pages.blocks(page.read_text(), language)]


def script() -> str:
    """The README's commands, then the lines of the whole walk that the README does not have."""
    short = [line for block in blocks(README, "bash") if block != INSTALLATION for line in block.splitlines()]
    whole = [line for block in blocks(WALK, "bash") for line in block.splitlines()]
    assert set(short) <= set(whole), "the README shows lines of the walk"
    return "\n".join([*short, *(line for line in whole if line not in short)])


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The walk, done."""
    walk = Walk(tmp_path_factory.mktemp("walk"))
    source = write_ct_dataset(walk.raw, 500, "Thorax", 3)
    assert blocks(README, "json") == blocks(WALK, "json")
    (source / "dataset.json").write_text(blocks(WALK, "json")[0])
    target = write_ct_dataset(walk.raw, 17, "Organs", 5, labelled=True)
    hu, _ = ct_volume((24, 40, 40), np.random.default_rng(7))
    write_volume(target / "imagesTs" / "case_000_0000.nii.gz", hu, (3.0, 1.5, 1.5))
    assert INSTALLATION in blocks(README, "bash")
    walk.run(script().replace("/data/", f"{walk.folder}/"))
    yield walk
    shutil.rmtree(walk.folder)


def test_walk__the_training_log_holds_the_transfer_report(walk: Walk) -> None:
    log = next((model(walk) / "fold_0").glob("training_log_*.txt")).read_text()
    assert f"Backbone from {SOURCE}/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all/checkpoint_final.pth" in log
    assert re.search(r"loaded: +62 tensors, +351,152 values", log)
    assert [line.split("WARNING: ")[1][:18] for line in log.splitlines() if "WARNING" in line] == ["10 steps at a rate"]
    record = json.loads((model(walk) / "fold_0" / "nnssl_transfer.json").read_text())
    assert (record["warnings"], record["report"]["adapted"]) == ([], {})


def test_page__names_the_files_that_are_written(walk: Walk) -> None:
    section = (ROOT / "docs" / "tracking.md").read_text().split("## Where the outputs are")[1].split("\n## ")[0]
    run = walk.folder / "nnUNet_results" / SOURCE / "nnssl_vox2vec__nnsslPlans_tiny__3d_fullres" / "fold_all"
    assert f"{SOURCE}/{run.parent.name}/{run.name}" in section
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w.]+)`", " ".join(first_cells))) == {file.name for file in run.iterdir()}


def test_predictions__do_not_need_the_pretraining(walk: Walk) -> None:
    for folder in (walk.folder / "nnUNet_results" / SOURCE).iterdir():
        folder.rename(walk.folder / "gone")
    predict = "nnUNetv2_predict -d 17 -i $nnUNet_raw/Dataset017_Organs/imagesTs -c 3d_fullres -device cpu -npp 1 -nps 1"
    walk.run(f"{predict} -o again -f 0 -tr nnUNetTrainer_Vox2vecProbe -p {PLANS}")
    assert np.array_equal(volume(walk.folder / "again"), volume(walk.folder / "predicted"))


def test_training__goes_on_and_validates_without_the_pretraining(walk: Walk) -> None:
    train = f"nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_Vox2vecProbe -p {PLANS} -device cpu"
    lengths = {"nnssl_num_iterations_per_epoch": "2", "nnssl_num_val_iterations_per_epoch": "1"}
    printed = walk.run(f"{train} --c", nnssl_num_epochs="3", **lengths)
    assert "Epoch 2" in printed
    assert "Epoch 1" not in printed
    assert "Backbone from" not in printed
    (model(walk) / "fold_0" / "validation" / "summary.json").unlink()
    walk.run(f"{train} --val")
    assert (model(walk) / "fold_0" / "validation" / "summary.json").is_file()


def test_zip__predicts_elsewhere(walk: Walk) -> None:
    elsewhere = walk.folder / "elsewhere"
    elsewhere.mkdir()
    walk.run(
        "nnUNetv2_install_pretrained_model_from_zip model.zip\n"
        f"nnUNetv2_predict_from_modelfolder -i nnUNet_raw/{TARGET}/imagesTs -o there "
        f"-m $nnUNet_results/{TARGET}/{MODEL} -f 0 1 -device cpu -npp 1 -nps 1",
        nnUNet_results=str(elsewhere),
        PATH=walk.installed,  # commands that start as a user's do
    )
    assert np.array_equal(volume(walk.folder / "there"), volume(walk.folder / "predicted_both"))


def test_python__runs(walk: Walk) -> None:
    (example,) = blocks(WALK, "python")
    walk.run(f"python -c '{example}'")

"""What a model card tells of a run: data, cost, probe and benchmark with their protocol, licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.interchange.exporting import export
from tests.pretrainings import tiny_plans, write_pretraining

SUMMARY = {
    "epochs": 2, "steps": 10, "device": "cuda", "hardware": "A card", "processes": 4, "device_hours": 12.5,
    "peak_memory_gib": 7.25, "energy_kwh": 3.5, "loss": 0.25, "val_loss": None, "embedding_std": 0.1,
    "effective_rank": 20.0, "best_probe": {"linear": {"dice": 0.75, "epoch": 2}},
}  # fmt: skip
PROBE = {"dataset": "Dataset017_Organs", "train_cases": ["a", "b"], "held_out_cases": ["c", "d", "e"],
         "labels": {"liver|left": [1], "spleen": [2]}}  # fmt: skip
TABLES = "### Dice\n\nMean over 9 test cases; leads with the number of seeds that are ahead.\n\n| a | b |\n|---|---|\n"


def _run(root: Path, **summary: Any) -> Path:
    checkpoint = write_pretraining(root / "results", tiny_plans())
    for name, content in (("config.json", {"probe": PROBE, "training_cases": 90}), ("summary.json", SUMMARY | summary)):
        (checkpoint.parent / name).write_text(json.dumps(content))
    (checkpoint.parent / "progress.png").write_bytes(b"a picture")
    return checkpoint


def _benchmark(folder: Path, **starts: str | None) -> Path:
    settings: dict[str, Any] = {"trainer": "nnUNetTrainer_SSLProbe", "plans": "nnUNetPlans", "variables": {}}
    methods = {name: {**settings, "checkpoint": start} for name, start in starts.items()}
    record = {"dataset": "Dataset017_Organs", "configuration": "3d_fullres", "test": ["x"] * 9, "training": ["y"],
              "methods": methods}  # fmt: skip
    (folder / "results").mkdir(parents=True)
    (folder / "splits.json").write_text(json.dumps(record))
    (folder / "results" / "results.md").write_text(TABLES)
    return folder


def test_model_card__tells_of_a_run(tmp_path: Path) -> None:
    run = _run(tmp_path)
    table = _benchmark(tmp_path / "table", ours=str(run.parent), random="random", stock=None)
    folder = export(run, tmp_path / "My-weights", licence="CC BY-NC 4.0", benchmark=table)
    card = (folder / "README.md").read_text()
    for line in (
        "license: cc-by-nc-4.0\n", "library_name: nnssl\n", '- "ct"\n- "non-commercial"\n---\n',
        "nnssl_transfer -s ./My-weights -t",
        "# PlainConvUNet, pretrained with vox2vec\n", "from the same voxel in two crops",
        'nnssl.load_pretrained("My-weights")', "| volumes | 90 |", "CT: clipped to -800 to 400 HU", "3 x 1.5 x 1.5 mm",
        "| cost | 12.5 GPU-hours, 4 x A card, 7.25 GiB of memory, 3.5 kWh |", "![Curves of the training](progress.png)",
        "2 labelled cases of another dataset. Best mean Dice on 3 others", "over liver\\|left, spl",
        "| linear head | 0.7500 (epoch 2) |", "test set of 9 cases", TABLES.strip(), "No commercial use.",
        "| ours | nnUNetTrainer_SSLProbe on nnUNetPlans, from these weights |",
        "| random | nnUNetTrainer_SSLProbe on nnUNetPlans, from random weights |",
        "| stock | nnUNetTrainer_SSLProbe on nnUNetPlans |", "gives every image its own z-score", "Goncharov, M.",
    ):  # fmt: skip
        assert line in card, line
    assert (folder / "progress.png").read_bytes() == b"a picture"
    again = (export(folder, tmp_path / "again", "safetensors") / "README.md").read_text()
    assert "| cost | 12.5 GPU-hours, 4 x A card" in again and "| linear head | 0.7500 (epoch 2) |" in again


def test_model_card__says_what_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = export(_run(tmp_path, energy_kwh=None, best_probe=None), tmp_path / "out", "safetensors")
    card = (folder / "README.md").read_text()
    assert "license: unknown" in card and "ask the authors" in card and "no licence is given" in caplog.text
    assert "energy not measured" in card and "## Results" not in card
    other = export(_run(tmp_path / "other"), tmp_path / "mine", "safetensors", licence="House rules 2")
    assert 'license: other\nlicense_name: "House rules 2"\n' in (other / "README.md").read_text()


def test_benchmark__of_other_weights_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path)
    table = _benchmark(tmp_path / "table", theirs=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"no training of .* started from"):
        export(run, tmp_path / "out", "safetensors", licence="mit", benchmark=table)
    (table / "results" / "results.md").unlink()
    with pytest.raises(UserError, match="--collect makes it"):
        export(run, tmp_path / "out", "safetensors", licence="mit", benchmark=table)
    with pytest.raises(UserError, match="give -benchmark the output folder"):
        export(run, tmp_path / "out", "safetensors", licence="mit", benchmark=tmp_path)
    assert not (tmp_path / "out").exists()

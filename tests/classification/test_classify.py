from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnssl.analysis.files import read_vectors
from nnssl.classification import classify as classify_module
from nnssl.classification.classify import Classified, classify, open_output
from nnssl.classification.heat import heat_map
from nnssl.classification.method import body_mean
from nnssl.classification.model import load_classifier
from nnssl.classification.predict import classify_predict
from nnssl.cli.classify import main
from nnssl.core.errors import UserError
from nnssl.core.files import WRITING
from tests.classification.data import write_run

_made: list[Classified] = []  # once for the tests of this file, which may run alone


def _frozen(run: Path) -> Classified:
    if not _made:
        _made.append(classify(600, run, "look", folds=2, device="cpu"))
    return _made[0]


def test_classify__frozen_features_then_new_images_with_maps(world: Path, run: Path) -> None:
    made = _frozen(run)
    assert made.folder == world / "results/Dataset600_Scans" / f"classification_look__vox2vec_frozen__{run.name[15:]}"
    wanted = {"classification.json", "model.pth", "predictions.csv", "results.csv", "results.json", "results.md",
              "results.png"}  # fmt: skip
    assert {file.name for file in made.folder.iterdir()} == wanted
    content = json.loads((made.folder / "results.json").read_text())
    rows = content["predictions"]
    assert list(rows) == ["logistic regression", "nearest neighbours", "logistic regression, random weights",
                          "nearest neighbours, random weights", "class shares"]  # fmt: skip
    best = rows["logistic regression"]
    assert best["pooled"]["accuracy"]["value"] == 1.0 and best["confusion"] == [[5, 0], [0, 5]]
    assert best["pooled"]["auroc"]["low"] == 1.0 and best["folds"]["0"]["auroc"]["low"] is None  # 5 cases a fold
    assert rows["class shares"]["pooled"]["auroc"]["value"] == 0.5
    assert f"-m {made.folder}" in made.next[0]

    table = world / "new.csv"
    found = classify_predict("600", table, made.folder, device="cpu")
    with open(table) as opened:
        lines = list(csv.DictReader(opened))
    assert [line["look"] for line in lines] == ["dark", "bright"] * 5
    assert float(lines[0]["p(dark)"]) == pytest.approx(found.values["s00"][1], rel=1e-4)
    with pytest.raises(UserError, match="--overwrite"):
        classify_predict("600", table, made.folder)
    images = world / "raw/Dataset600_Scans/imagesTr"
    classify_predict(images / "s01", table, made.folder, world / "maps", device="cpu", overwrite=True)
    assert sorted(file.name for file in (world / "maps").iterdir()) == ["s01.nii.gz", "s01.png"]
    image = nibabel.load(world / "maps/s01.nii.gz")
    original = nibabel.load(images / "s01_0000.nii.gz")
    assert image.shape == original.shape and np.allclose(image.affine, original.affine)  # type: ignore[attr-defined]


def test_heat_map__its_mean_over_the_body_is_the_score_and_it_is_the_gradient_times_the_map(
    world: Path, run: Path
) -> None:
    one = load_classifier(_frozen(run).folder / "model.pth")
    image = one.model.prepare(world / "raw/Dataset600_Scans/imagesTr/s03", with_body=True)
    assert image.body is not None
    cells, stride = heat_map([one], image, 0, "cpu")
    assert stride == (1, 1, 1)
    score = one.head.scores(one.vector(image.values, image.body, "cpu")[None])[0, 0]
    assert cells[image.body].mean() == pytest.approx(score, abs=2e-3)  # kept in half precision
    window = torch.zeros(1, 1, 16, 32, 32)  # which holds the image, with zeros at its end
    body = torch.zeros(1, 16, 32, 32, dtype=torch.bool)
    z, y, x = image.body.shape
    window[0, :, :z, :y, :x], body[0, :z, :y, :x] = torch.from_numpy(image.values), torch.from_numpy(image.body)
    features = one.model.dense(window).requires_grad_()
    mean = body_mean(features, body)
    (gradient,) = torch.autograd.grad((mean.double() @ torch.from_numpy(one.head.weights[0])).sum(), features)
    cam = (gradient.sum((2, 3, 4), keepdim=True) * features).sum(1)[0] + one.head.bias[0]
    assert np.allclose(cells, cam.detach().numpy()[:z, :y, :x], atol=2e-2)


def test_classify__numbers_and_vectors_that_are_kept(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _frozen(run)
    (vectors,) = (world / "results/Dataset600_Scans").glob("vectors_vox2vec_*")
    before = (vectors / "vectors.npz").read_bytes()
    main(["-d", "600", "-m", str(run), "-target", "level", "-folds", "2", "-device", "cpu", "-o", str(world / "level")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| ridge regression | ") for line in lines) and lines[-2] == "next:"
    found = json.loads((world / "level/results.json").read_text())["predictions"]
    assert found["ridge regression"]["pooled"]["r2"]["value"] > 0.7 > found["mean"]["pooled"]["r2"]["value"]
    assert len(read_vectors(vectors / "vectors.npz")) == 10 and (vectors / "vectors.npz").read_bytes() == before
    new = classify_predict(world / "raw/Dataset600_Scans/imagesTr/s05", world / "one.csv", world / "level",
                           device="cpu")  # fmt: skip
    assert new.values["s05"] == pytest.approx(1.05, abs=0.3)
    with pytest.raises(SystemExit):
        main(["-d", "600", "-m", str(run), "-target", "look", "-folds", "2", "-o", str(world / "level")])
    assert "another target" in capsys.readouterr().err


def test_classify__other_weights_do_not_replace_results(world: Path, run: Path, tmp_path: Path) -> None:
    made, other = _frozen(run), write_run(tmp_path, seed=2)
    before = (made.folder / "results.json").read_bytes()
    with pytest.raises(UserError, match="weights of another pretraining; give another -o"):
        classify(600, other, "look", device="cpu")
    with pytest.raises(UserError, match="another seed"):
        classify(600, run, "look", seed=3, device="cpu")
    assert (made.folder / "results.json").read_bytes() == before


def test_open_output__what_a_killed_process_left(tmp_path: Path) -> None:
    about: dict[str, Any] = {"dataset": "Dataset600_Scans", "target": "look", "task": "regression", "classes": [],
                             "way": "frozen", "start": "vox2vec", "weights": None, "seed": 0}  # fmt: skip
    (tmp_path / f".classification.json.1{WRITING}").write_text("{")
    open_output(tmp_path, about)
    open_output(tmp_path, about)
    assert json.loads((tmp_path / "classification.json").read_text()) == about


def test_classify__one_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify_module, "started_by_torchrun", lambda: True)
    with pytest.raises(UserError, match="without torchrun"):
        classify(600, run, "look", device="cpu")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-m", "RUN", "-set", "num_epochs=1"], "add --finetune"),
        (["-m", "RUN", "-target", "look", "-np", "2"], "-np is for fine-tuning"),
        (["-m", "random", "--finetune"], "does not say which network"),
        (["-m", "RUN", "-p", "mine", "--finetune"], "names the plans of random weights"),
        (["-m", "RUN", "-c", "3d_lowres", "--finetune"], "is for -m random"),
        (["-m", "RUN", "-folds", "1"], "-folds 1"),
        (["-m", "RUN", "-target", "look", "--finetune", "-f", "7"], "no fold 7"),
        (["-m", "RUN", "-target", "look", "--finetune", "-set", "width=3"], "there is no option 'width'"),
        (["-m", "RUN", "-target", "look", "--finetune", "-set", "patience=x"], "-set patience takes"),
        (["-m", "RUN", "-target", "look", "-o", "RAW"], "other files"),
        (["-m", "nothing", "-target", "look"], "no checkpoint nothing"),
    ],
)
def test_main__mistakes(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:  # fmt: skip
    places = {"RUN": str(run), "RAW": str(world / "raw")}
    with pytest.raises(SystemExit) as stopped:
        main(["-d", "600", "-device", "cpu", *(places.get(flag, flag) for flag in flags)])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and said in error and error.count("\n") == 1

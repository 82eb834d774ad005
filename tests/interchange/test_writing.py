from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnssl
from nnssl.analysis.embed import embed
from nnssl.analysis.views import visualize_views
from nnssl.checkpoints.files import FINAL, NNUNET_WEIGHTS, load_checkpoint, save_checkpoint
from nnssl.checkpoints.imported import Weights, imported_content
from nnssl.checkpoints.pretrained import load_pretrained as load_into
from nnssl.checkpoints.pretrained import read_pretrained
from nnssl.cli.import_weights import main
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import RunFile
from nnssl.finetuning.segmentation import build_segmentation
from nnssl.finetuning.start import Wanted, find_start
from nnssl.finetuning.transfer_plans import transfer
from nnssl.interchange.family import CONFIGURATION, Window, dataset_json_of, plans_of
from nnssl.interchange.licensing import licence_warnings
from nnssl.networks.build import build_backbone, resolve_configuration, segmentation_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.pretrain import pretrain
from nnssl.pretraining.weights import load_weights
from tests.interchange.files import imported, nnunet_checkpoint, randomised, saved
from tests.networks.helpers import unet_configuration
from tests.phantoms import write_ct_dataset
from tests.runs import make_setup


def _vox2vec(root: Path) -> Path:
    return saved(randomised(FPN3d(1, 4, 3)).state_dict(), root / "weights")


def test_import_weights__leaves_what_a_pretraining_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="nnssl"):
        run = imported(_vox2vec(tmp_path), tmp_path, monkeypatch)
    assert sorted(f.name for f in run.folder.iterdir()) == [
        FINAL, "config.json", "dataset.json", "import_report.json", NNUNET_WEIGHTS, "plans.json",
    ]  # fmt: skip
    assert list((tmp_path / "results").iterdir()) == [tmp_path / "results/Dataset900_Public"]
    config = read_json(run.folder / "config.json", RunFile)
    assert config["imported"] == run.about == load_checkpoint(run.folder / FINAL)["imported"]
    assert run.about["source"]["file"] == "weights" and len(run.about["source"]["sha256"]) == 64
    assert run.next == ("nnssl_transfer -s 900 -t TARGET",)
    said = caplog.text
    assert "licence: MIT" in said and "cite: Goncharov" in said and "0 left" in said and run.next[0] in said


def test_import_weights__replaces_nothing_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = _vox2vec(tmp_path)
    first = imported(file, tmp_path, monkeypatch)
    with pytest.raises(UserError, match="--overwrite"):
        imported(file, tmp_path, monkeypatch)
    saved({**FPN3d(1, 4, 3).state_dict(), "first_conv.bias": torch.ones(5)}, file)
    with pytest.raises(UserError, match=r"first_conv.bias is \(5,\).*\(4,\)"):
        imported(file, tmp_path, monkeypatch, overwrite=True)
    assert load_checkpoint(first.folder / FINAL)["imported"] == first.about
    for value, said in ((torch.full((4,), float("nan")), "no finite"), (torch.ones(4, dtype=torch.int8), "int8")):
        saved({**FPN3d(1, 4, 3).state_dict(), "first_conv.bias": value}, file)
        with pytest.raises(UserError, match=rf"first_conv.bias .*{said}"):
            imported(file, tmp_path, monkeypatch, overwrite=True)
    again = imported(_vox2vec(tmp_path), tmp_path, monkeypatch, overwrite=True, licence="CC BY-NC-ND 4.0")
    assert "known as licensed MIT, and -license says CC BY-NC-ND 4.0" in caplog.text
    assert again.folder == first.folder and again.about["licence"] == "CC BY-NC-ND 4.0"


def test_import_weights__numbers_and_names_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw" / "Dataset900_Mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the number of Dataset900_Mine"):
        imported(_vox2vec(tmp_path), tmp_path, monkeypatch)
    imported(_vox2vec(tmp_path), tmp_path, monkeypatch, dataset="Dataset901_First")
    with pytest.raises(UserError, match=r"the number of Dataset901_First"):
        imported(_vox2vec(tmp_path), tmp_path, monkeypatch, dataset="Dataset901_Second")
    with pytest.raises(UserError, match=r"-o: 'mine' cannot be the name of a dataset"):
        imported(_vox2vec(tmp_path), tmp_path, monkeypatch, dataset="mine")


def test_import_weights__an_unknown_file_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved({"state_dict": torch.nn.Linear(2, 3).state_dict(), "epoch": 3}, tmp_path / "w")
    with pytest.raises(UserError, match=r"(?s)2 tensors under state_dict \(weight \(3, 2\), bias \(3,\)\), beside epoch"
                                        r".*can be read:.*nnU-Net.*vox2vec"):  # fmt: skip
        imported(file, tmp_path, monkeypatch)


def test_import_weights__sam_is_refused_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("backbone.conv1.weight", "neck.lateral.weight", "read_out_head.weight")
    file = saved({"state_dict": {name: torch.ones(1) for name in names}}, tmp_path / "w")
    with pytest.raises(UserError, match=r"SAM's 3D ResNet-18.*-m sam"):
        imported(file, tmp_path, monkeypatch)


def test_main__says_the_licence_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    main([str(_vox2vec(tmp_path)), "-o", "Dataset900_Public", "-license", "CC BY-NC-ND 4.0"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 3 and "known as licensed MIT" in lines[0]
    assert "no commercial use" in lines[1] and "must not be passed on" in lines[2]


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        (None, ["is not known"]),
        ("MIT", []),
        ("Apache 2.0 (code)", []),
        ("CC BY-SA 4.0", []),
        ("CC BY-NC 4.0", ["no commercial use"]),
        ("non-commercial, no derivatives", ["no commercial use", "must not be passed on"]),
    ],
)
def test_licence_warnings(licence: str | None, said: list[str]) -> None:
    warnings = licence_warnings(licence, "they")
    assert len(warnings) == len(said) and all(part in text for part, text in zip(said, warnings, strict=True))


def _sources(kind: str, root: Path) -> tuple[Path, Any]:
    """A file of weights and its network: of vox2vec, or a model folder of nnU-Net."""
    if kind == "vox2vec":
        network = randomised(FPN3d(1, 4, 3))
        return saved(network.state_dict(), root / "weights"), network
    architecture = unet_configuration("ResidualEncoderUNet", [[1, 1, 1], [2, 2, 2]], [4, 6])["architecture"]
    plans = plans_of("nnUNetPlans", architecture, (3.0, 1.5, 1.5), (16, 32, 32), Window(-1000, 1000))
    plans["dataset_name"] = "Dataset291_Organs"
    network = randomised(segmentation_of(resolve_configuration(plans, "3d_fullres"), 3))
    folder = root / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    saved(nnunet_checkpoint(plans, network), folder / "fold_0" / FINAL)
    return folder, network


@pytest.mark.parametrize(
    "kind", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("vox2vec", "nnunet")), "nnunet as it is"]
)
def test_walk__from_public_weights_to_a_training_and_to_vectors(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transferred plans build a network that takes every tensor; images are embedded by the same plans."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    target = write_ct_dataset(tmp_path / "raw", 17, "Target", 2, labelled=True)
    source, _ = _sources(kind.split()[0], tmp_path)
    run = source if "as it is" in kind else imported(source, tmp_path, monkeypatch).folder
    made = transfer(run if "as it is" in kind else 900, 17, num_processes=1)
    name, is_vox2vec = made.prepared.plans_name, kind == "vox2vec"
    trainer = "nnUNetTrainer_Vox2vecProbe" if is_vox2vec else "nnUNetTrainer_SSLUNetFinetune"
    assert name.endswith("_imported") and f"-tr {trainer}" in made.command
    assert (made.stock_command is None) == ("as it is" in kind)
    plans = json.loads((tmp_path / f"preprocessed/Dataset017_Target/{name}.json").read_text())

    wanted = Wanted("nnUNetTrainer_SSLUNetFinetune", None, "unet", plans, "3d_fullres")
    own = replace(wanted, trainer="nnUNetTrainer_Vox2vecProbe", method="vox2vec", head="nonlinear")
    with nullcontext() if is_vox2vec else pytest.raises(UserError, match="is for vox2vec"):
        find_start(own, from_scratch=False, results=tmp_path / "results")
    start = find_start(wanted, from_scratch=False, results=tmp_path / "results")
    assert start.source is not None and start.source.levels == start.block["levels"] == "decoder"
    assert start.block["network"]["intensity"] is None and not start.warnings
    network = build_segmentation(start.block["network"], wanted.resolved, 1, 3)
    report = load_into(network, start.source, start.advice)
    assert report.loaded and not report.adapted and all("seg_layers" in n for n in (*report.fresh, *report.unused))

    random = transfer(run if "as it is" in kind else 900, 17, "random", num_processes=1)
    assert random.prepared.plans_name.endswith("_random")

    vectors = embed(run, target / "imagesTr", tmp_path / "out", device="cpu")
    with np.load(vectors.folder / "vectors.npz") as table:
        assert len(table["vectors"]) == 2 and np.isfinite(table["vectors"]).all()
        assert not np.array_equal(*table["vectors"])
    with pytest.raises(UserError, match="no method that makes views"):
        visualize_views(run, tmp_path / "views.png")


def test_pretrain__goes_on_from_imported_weights_but_not_as_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = imported(_vox2vec(tmp_path), tmp_path, monkeypatch)
    method = make_setup(tmp_path).build_method()
    with caplog.at_level(logging.INFO, logger="nnssl"):
        load_weights(method, Stored(run.folder / FINAL))
    own, given = method.backbone.state_dict(), read_pretrained(run.folder / FINAL).backbone
    assert all(torch.equal(own[name], given[name]) for name in given) and "encoder only" not in caplog.text
    content = load_checkpoint(run.folder / FINAL)
    save_checkpoint({**content, "levels": "encoder"}, tmp_path / "encoder.pth")
    load_weights(method, Stored(tmp_path / "encoder.pth"))
    assert "pretrained encoder only" in caplog.text
    with pytest.raises(UserError, match=r"imported is no method.*-pretrained RUN"):
        pretrain([500], "imported")


def test_load_pretrained__of_random_weights_in_place_of_imported_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = imported(_vox2vec(tmp_path), tmp_path, monkeypatch).folder
    own, random = nnssl.load_pretrained(run), nnssl.load_pretrained(f"random:{run}")
    assert random.is_random and own.method == random.method == "imported"
    assert own.fingerprint != random.fingerprint


def test_checkpoints__levels_are_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = unet_configuration("PlainConvUNet", [[1, 1, 1], [2, 2, 2]], [2, 4])["architecture"]
    plans = plans_of("small", architecture, (1, 1, 1), (8, 8, 16))
    state = build_backbone(plans, CONFIGURATION, "encoder").state_dict()
    content = imported_content(Weights(plans, CONFIGURATION, "encoder", state, dataset_json_of("MR")), "w").content
    save_checkpoint(content, tmp_path / "c.pth")
    assert read_pretrained(tmp_path / "c.pth").levels == "encoder"
    with pytest.raises(UserError, match=r"levels: must be 'encoder' or 'decoder'"):
        save_checkpoint({**content, "levels": "other"}, tmp_path / "c.pth")
        load_checkpoint(tmp_path / "c.pth")

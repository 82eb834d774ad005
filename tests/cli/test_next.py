"""What commands print as next, typed: from raw volumes to a prediction, line by line."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as stock_planning
from nnunetv2.inference import predict_from_raw_data as stock_prediction
from nnunetv2.run import run_training as stock_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnssl
import nnssl_trainers
from nnssl.cli import plan_and_preprocess, pretrain, transfer
from tests.phantoms import write_ct_dataset

OURS = {
    "nnssl_plan_and_preprocess": plan_and_preprocess.main,
    "nnssl_pretrain": pretrain.main,
    "nnssl_transfer": transfer.main,
}
SHORT = ["num_epochs=1", "steps_per_epoch=1", "val_steps_per_epoch=1", "patch_size=16,16,16", "voxels_per_pair=64"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two raw datasets, short trainings, and nnU-Net's validation without its processes; no card."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / "a folder" / name).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / "a folder" / name))
    raw = tmp_path / "a folder" / "raw"
    write_ct_dataset(raw, 500, "Thorax", 3, shape=(16, 20, 20))
    target = write_ct_dataset(raw, 17, "Organs", 5, shape=(16, 20, 20), labelled=True)
    (target / "imagesTs").mkdir()
    (target / "imagesTs" / "test_0000.nii.gz").write_bytes((target / "imagesTr/case_000_0000.nii.gz").read_bytes())
    monkeypatch.chdir(tmp_path)  # nnU-Net's prediction makes its output folder
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent))
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        monkeypatch.setenv(f"nnssl_{name}", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save_probabilities: None)
    return tmp_path / "a folder"


def _type(line: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Run a line; nnU-Net's commands read their arguments from the process."""
    words = [*shlex.split(line), *more]
    if words[0] in OURS:
        OURS[words[0]](words[1:])
        return
    entries: dict[str, Any] = {
        "nnUNetv2_plan_and_preprocess": stock_planning.plan_and_preprocess_entry,
        "nnUNetv2_train": stock_training.run_training_entry,
        "nnUNetv2_predict": stock_prediction.predict_entry_point,
    }
    monkeypatch.setattr(sys, "argv", words)
    entries[words[0]]()


def _next(said: str) -> tuple[str, ...]:
    """The lines below the last "next:"; those that begin with # are about them."""
    lines = said.rsplit("next:\n", 1)[1].splitlines()
    assert all(line.startswith("  ") for line in lines), lines
    return tuple(line.strip() for line in lines if not line.startswith("  #"))


def test_next__typed_line_by_line(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type("nnssl_plan_and_preprocess -d 500 -p nnsslPlans_tiny -np 1", monkeypatch)
    (line,) = _next(capsys.readouterr().out)
    assert line == "nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_tiny"
    _type(line, monkeypatch, "-o", *SHORT)  # without a card and without -device
    printed = _next(capsys.readouterr().out)
    run = nnssl.pretrain([500], "vox2vec", plans="nnsslPlans_tiny", device="cpu", options=SHORT, continue_run=True)
    assert run.next == printed and (run / "checkpoint_final.pth").is_file()
    _type(line, monkeypatch, "-o", *SHORT, "--c")  # finished: the lines come again
    assert _next(capsys.readouterr().out) == printed

    transferred, train, planned, plain = printed
    _type(transferred, monkeypatch, "-np", "1")
    then = _next(capsys.readouterr().out)
    first, stock, *rest = then
    assert first == train and rest == [planned, plain]
    made = nnssl.transfer(500, 17, "vox2vec", num_processes=1)
    assert made.next == then and (made.command, made.stock_command) == (first, stock)

    given: list[Any] = []
    with monkeypatch.context() as patch:  # as nnU-Net's own command reads them
        patch.setattr(stock_training, "run_training", lambda *arguments, **more: given.append(arguments))
        _type(stock, monkeypatch)
        assert given.pop()[3:6] == ("nnUNetTrainer", "nnsslPlans_tinyFrom500_vox2vec", str(run / "nnunet_weights.pth"))
        for name in ("extract_fingerprints", "preprocess"):
            patch.setattr(stock_planning, name, lambda *arguments, **more: given.append(arguments))
        patch.setattr(stock_planning, "plan_experiments", lambda *arguments: "nnUNetPlans")
        _type(planned, monkeypatch)
        assert given[0][0] == [17] and given[1][:3] == ([17], "nnUNetPlans", ["3d_fullres"])
    capsys.readouterr()

    nnssl.plan_and_preprocess([17], num_processes=1, show_progress=False)  # the same stock plans, without processes
    for line, plans in ((first, "nnsslPlans_tinyFrom500_vox2vec"), (plain, "nnUNetPlans")):
        _type(line, monkeypatch)
        (predict,) = _next(capsys.readouterr().out)
        with monkeypatch.context() as patch:
            patch.setattr(stock_prediction, "nnUNetPredictor", _Predictor)
            _type(predict, monkeypatch)
        model = folders / "results" / "Dataset017_Organs" / f"nnUNetTrainer_Vox2vecProbe__{plans}__3d_fullres"
        assert _Predictor.given == (str(model), (0,), "checkpoint_final.pth")
        assert Path(_Predictor.images).name == "imagesTs" and os.listdir(_Predictor.images) == ["test_0000.nii.gz"]
        log = next((model / "fold_0").glob("training_log_*.txt")).read_text()
        assert log.rstrip().endswith(predict) and log.count("next:") == 1


class _Predictor:
    """Stands for nnU-Net's: keeps what its command would predict with."""

    given: Any
    images: str

    def __init__(self, **_: Any) -> None:
        pass

    def initialize_from_trained_model_folder(self, folder: str, folds: Any, checkpoint_name: str) -> None:
        assert all((Path(folder) / f"fold_{fold}" / checkpoint_name).is_file() for fold in folds)
        type(self).given = (folder, tuple(folds), checkpoint_name)

    def predict_from_files(self, images: str, *_: Any, **__: Any) -> None:
        type(self).images = images

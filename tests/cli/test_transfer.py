from __future__ import annotations

import pytest
import torch

from nnssl.cli.transfer import main
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset
from tests.pretrainings import CT_JSON, finish_pretraining, tiny_plans

__all__ = ["folders"]  # the fixture


def test_main__says_what_to_type_next_and_what_was_left_out(
    folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finish_pretraining(folders.results, "Dataset500_Source", tiny_plans(), CT_JSON)
    target = write_ct_dataset(folders.raw, 17, "Target", 2, labelled=True)
    command = ["-s", "500", "-t", "17", "-m", "vox2vec", "-np", "1"]
    main(command)
    train = "nnUNetv2_train 17 3d_fullres all -tr nnUNetTrainer_Vox2vecProbe"
    said = [line.strip() for line in capsys.readouterr().out.split("next:\n")[1].splitlines()]
    assert said[1] == f"{train} -p nnsslPlans_tinyFrom500_vox2vec -device cpu"
    assert said[3:] == ["nnUNetv2_plan_and_preprocess -d 17 -c 3d_fullres", f"{train} -device cpu"]
    (target / "labelsTr" / "case_001.nii.gz").unlink()
    with pytest.raises(SystemExit) as exit_:
        main([*command[:-2], "-np", "1", "-overwrite_plans_name", "again"])
    assert exit_.value.code == 3
    out = capsys.readouterr().out
    assert "left out: case_001: no label" in out and "-p again -device cpu" in out.split("next:\n")[1]


def test_main__a_mistake_is_a_sentence(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Dataset500_Source", "Dataset017_Target"):
        (folders.raw / name).mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["-s", "500", "-t", "17"])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no finished pretraining of Dataset500_Source") and error.count("\n") == 1


def test_main__source_and_target_the_wrong_way_round(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    finish_pretraining(folders.results, "Dataset500_Source", tiny_plans(), CT_JSON)
    (folders.raw / "Dataset017_Target").mkdir()
    with pytest.raises(SystemExit):
        main(["-s", "17", "-t", "500", "-m", "vox2vec"])
    assert "did you mean nnssl_transfer -s 500 -t 17?" in capsys.readouterr().err

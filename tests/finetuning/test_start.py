from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from nnssl.checkpoints.loading import TransferReport
from nnssl.checkpoints.pretrained import name_of
from nnssl.core.errors import UserError
from nnssl.data.guard import Images
from nnssl.finetuning.start import Choice, Head, Start, Wanted, find_checkpoint, find_start
from nnssl.finetuning.trainer import RECORD, refuse_mixture, write_record
from tests.finetuning.plans import CT_WINDOW, small_plans
from tests.pretrainings import write_pretraining


def _start(tmp_path: Path, plans: dict[str, Any], **changes: Any) -> Start:
    arguments = {"configuration": "3d_fullres", "trainer": "nnUNetTrainer_Vox2vecProbe", "method": "vox2vec",
                 "head": "nonlinear"}  # fmt: skip
    from_scratch = changes.pop("from_scratch", False)
    return find_start(Wanted(plans=plans, **{**arguments, **changes}), from_scratch, tmp_path)


def _oriented(**orientations: str | None) -> Images:
    return Images("", orientations=orientations)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_pretraining(tmp_path, small_plans(dataset="Dataset500_Source"))


def test_find_start__describes_the_network_in_json(tmp_path: Path, source: Path) -> None:
    start = _start(tmp_path, small_plans())
    assert start.source is not None
    assert start.source.path == source
    assert start.warnings == []
    assert json.loads(json.dumps(start.block)) == {
        "checkpoint": "Dataset500_Source/nnssl_vox2vec__nnUNetPlans__3d_fullres/fold_all/checkpoint_final.pth",
        "method": "vox2vec",
        "levels": "decoder",
        "network": {"levels": "decoder", "head": "nonlinear", "intensity": None},
    }
    assert "nnssl_transfer -s 500 -t 17 -m vox2vec" in start.advice


@pytest.mark.parametrize(("method", "head"), [("vox2vec", "nonlinear"), ("sam", "encodings")])
def test_find_start__reads_the_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, head: str
) -> None:
    write_pretraining(tmp_path, small_plans(dataset="Dataset500_Source"), method=method)
    load = Mock(side_effect=torch.load)
    monkeypatch.setattr(torch, "load", load)
    assert _start(tmp_path, small_plans(), method=method, head=head).source is not None
    assert load.call_count == 1


def test_find_start__keeps_what_else_the_block_says(tmp_path: Path, source: Path) -> None:
    plans = small_plans() | {"nnssl": {"num_epochs": 3}}
    assert _start(tmp_path, plans).block["num_epochs"] == 3
    assert "network" not in plans["nnssl"]


def test_find_start__bridges_other_intensities(tmp_path: Path, source: Path) -> None:
    plans = small_plans()
    plans["foreground_intensity_properties_per_channel"]["0"] = CT_WINDOW | {"mean": 0.0, "percentile_00_5": -500.0}
    start = _start(tmp_path, plans)
    assert start.block["network"]["intensity"][0]["offset"] == pytest.approx(-0.2)
    assert "these plans keep -500 to 700" in start.warnings[0]


def test_find_start__from_scratch_and_random_need_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _start(tmp_path, small_plans(), from_scratch=True).source is None
    monkeypatch.setenv("nnssl_checkpoint", "random")
    for method, levels in (("vox2vec", "decoder"), (None, "decoder")):
        start = _start(tmp_path, small_plans(), method=method)
        assert (start.source, start.block["checkpoint"], start.block["levels"]) == (None, "random", levels)
    monkeypatch.delenv("nnssl_checkpoint")
    block = {"checkpoint": "random", "method": "vox2vec", "levels": "encoder"}
    assert _start(tmp_path, small_plans() | {"nnssl": block}).block["network"]["levels"] == "encoder"


def test_find_start__warns_of_spacing(tmp_path: Path, source: Path) -> None:
    assert _start(tmp_path, small_plans(spacing=[2.3, 1.0, 0.9])).warnings == []
    (warning,) = _start(tmp_path, small_plans(spacing=[2.5, 1.0, 1.0])).warnings
    assert "Dataset017_Target, 2.5 x 1 x 1 mm" in warning and "Dataset500_Source, 2 x 1 x 1 mm" in warning
    assert "nnssl_transfer -s 500 -t 17" in warning


def test_find_start__warns_of_axes_and_orientation(tmp_path: Path, source: Path) -> None:
    (axes,) = _start(tmp_path, small_plans() | {"transpose_forward": [2, 0, 1]}).warnings
    assert "[2, 0, 1]" in axes
    assert "nnssl_transfer" in axes
    (oriented,) = _start(tmp_path, small_plans(), seen=_oriented(a="LPS", b=None, c="RAS")).warnings
    assert "(LPS): c (RAS) (1 of 3)" in oriented
    assert "DICOMOrient(image, 'LPS')" in oriented
    assert _start(tmp_path, small_plans(), seen=_oriented(a="LPS", b=None)).warnings == []


def test_find_start__says_nothing_of_an_unknown_orientation(tmp_path: Path) -> None:
    write_pretraining(tmp_path, small_plans(dataset="Dataset500_Source"), orientation=None)
    assert _start(tmp_path, small_plans(), seen=_oriented(a="RAS")).warnings == []


def test_find_start__plans_of_their_own_may_not_be_of_another_modality(tmp_path: Path) -> None:
    scheme = "ZScoreNormalization"
    write_pretraining(tmp_path, small_plans(dataset="Dataset500_Source", scheme=scheme))  # its channel is called MR
    assert _start(tmp_path, small_plans(scheme=scheme), seen=Images("", ["T2"])).warnings == []
    with pytest.raises(UserError, match=r"PET in Dataset017_Target, MR in .*nnssl_transfer --allow_other"):
        _start(tmp_path, small_plans(scheme=scheme), seen=Images("", ["PET"]))
    (warning,) = _start(tmp_path, small_plans(scheme=scheme), seen=Images("", ["channel_0"])).warnings
    assert "channel_0 of Dataset017_Target" in warning
    allowed = {"nnssl": {"allow_other_intensities": True}}
    with pytest.raises(UserError, match="normalised by CTNormalization"):
        _start(tmp_path, small_plans(), seen=Images("", ["CT"]))
    start = _start(tmp_path, small_plans() | allowed, seen=Images("", ["CT"]))
    assert start.block["network"]["intensity"] is None and len(start.warnings) == 2


def test_find_start__refuses_two_dimensions_and_cascades(tmp_path: Path) -> None:
    plans = small_plans(previous_stage="3d_lowres")
    plans["configurations"]["2d"] = {"patch_size": [16, 16]}
    with pytest.raises(UserError, match="also reads the segmentation of 3d_lowres"):
        _start(tmp_path, plans, from_scratch=True)
    with pytest.raises(UserError, match="2d is not three-dimensional"):
        _start(tmp_path, plans, configuration="2d", from_scratch=True)


def test_find_start__refuses_another_method(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", str(source))
    trainer = {"trainer": "nnUNetTrainer_VocoProbe", "method": "voco"}
    with pytest.raises(UserError, match=r"with vox2vec.* is for voco: type -tr nnUNetTrainer_SSLProbe"):
        _start(tmp_path, small_plans(), **trainer)


@pytest.fixture
def model(tmp_path: Path, source: Path) -> tuple[Start, Path]:
    """A model folder whose fold 0 began from `source`."""
    start, folder = _start(tmp_path, small_plans()), tmp_path / "model"
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    write_record(start, TransferReport(loaded={"x": 3}), fold)
    (fold / "checkpoint_best.pth").touch()
    (folder / "plans.json").write_text(json.dumps(small_plans() | {"nnssl": start.block}))
    return start, folder


def test_write_record__says_what_was_loaded(model: tuple[Start, Path]) -> None:
    record = json.loads((model[1] / "fold_0" / RECORD).read_text())
    assert record["report"]["loaded"] == {"x": 3}
    assert record["checkpoint"].endswith("checkpoint_final.pth")


def test_refuse_mixture__lets_the_same_training_begin_anew(model: tuple[Start, Path]) -> None:
    start, folder = model
    refuse_mixture(start, folder, folder / "fold_0")
    refuse_mixture(start, folder, folder / "fold_1")


def test_refuse_mixture__replaces_no_fold_that_began_elsewhere(model: tuple[Start, Path]) -> None:
    start, folder = model
    other = replace(start, block=start.block | {"checkpoint": "random"})
    with pytest.raises(UserError, match=r"fold_0 holds a training that started from .* start from random"):
        refuse_mixture(other, folder, folder / "fold_0")
    refuse_mixture(other, folder, folder / "fold_1")  # each fold may have its own pretraining
    (folder / "fold_0" / "checkpoint_best.pth").unlink()  # it came to nothing
    refuse_mixture(other, folder, folder / "fold_0")


def test_refuse_mixture__all_folds_predict_with_one_network(model: tuple[Start, Path]) -> None:
    start, folder = model
    network = start.block["network"] | {"intensity": [{"scale": 2.0, "offset": 0.0, "low": -1.0, "high": 1.0}]}
    other = replace(start, block=start.block | {"network": network})
    with pytest.raises(UserError, match=r"other folds in .* were trained with another network"):
        refuse_mixture(other, folder, folder / "fold_1")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def only(results: Path) -> Path:
    return write_pretraining(results, small_plans(dataset="Dataset500_Source"))


def wanted(
    method: str | None = "vox2vec", head: Head = "nonlinear", plans: dict[str, Any] | None = None,
    trainer: str = "nnUNetTrainer_Vox2vecProbe",
) -> Wanted:  # fmt: skip
    return Wanted(trainer, method, head, plans or small_plans(), "3d_fullres")


def older(path: Path, seconds: int) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_the_only_finished_one(results: Path, only: Path) -> None:
    assert find_checkpoint(wanted(), results) == Choice(only)
    assert find_checkpoint(wanted(None), results) == Choice(only)
    (only.parents[1] / "fold_0").mkdir()
    (only.parents[1] / "fold_0" / "checkpoint_latest.pth").touch()  # an unfinished run does not count
    assert find_checkpoint(wanted(None), results) == Choice(only)


def test_none_is_finished(results: Path) -> None:
    with pytest.raises(UserError, match=r"no finished pretraining of vox2vec.*nnssl_pretrain -d DATASET -m vox2vec"):
        find_checkpoint(wanted(), results)


def test_one_of_another_method_is_named_with_what_to_type(results: Path) -> None:
    path = write_pretraining(results, small_plans(dataset="Dataset500_Source"), method="pimpic")
    with pytest.raises(UserError) as error:
        find_checkpoint(wanted(), results)
    for words in (str(path.parent), "with pimpic", "-tr nnUNetTrainer_SSLProbe", "pretrain vox2vec"):
        assert words in str(error.value)


def test_every_run_that_does_not_fit_is_named_with_its_reason(results: Path, only: Path) -> None:
    write_pretraining(results, small_plans(dataset="Dataset501_MR", scheme="ZScoreNormalization"))
    damaged = only.parents[2] / "nnssl_vox2vec__other__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError) as error:
        find_checkpoint(wanted(plans=small_plans(channels=3) | {"nnssl": {}}, method="voco"), results)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3 and all(line.startswith(f"  {results}") for line in lines)
    assert "damaged" in lines[1] and "with vox2vec" in lines[0]


def test_only_those_with_the_channels_and_intensities_count(results: Path, only: Path) -> None:
    magnetic = small_plans(dataset="Dataset501_MR", scheme="ZScoreNormalization")
    path = write_pretraining(results, magnetic)
    older(only, 100)  # the newer one is of another kind
    assert find_checkpoint(wanted(), results).path == only
    assert find_checkpoint(wanted(plans=small_plans(scheme="ZScoreNormalization")), results).path == path
    with pytest.raises(UserError, match="RescaleTo01"):
        find_checkpoint(wanted(plans=small_plans(scheme="RescaleTo01Normalization")), results)


def test_the_same_plans_come_before_the_newest(results: Path, only: Path) -> None:
    other = write_pretraining(results, small_plans(dataset="Dataset501_Other", features=(4, 6, 10)))
    older(only, 100)
    choice = find_checkpoint(wanted(), results)
    assert choice.path == only and choice.note is not None
    assert str(only.parent) in choice.note and str(other.parent) in choice.note and "nnssl_checkpoint" in choice.note
    newest = write_pretraining(results, small_plans(dataset="Dataset502_Same"))
    assert find_checkpoint(wanted(), results).path == newest
    older(newest, 200)
    assert find_checkpoint(wanted(), results).path == only


def test_a_trainer_of_the_plans_own_network_wants_that_network(results: Path) -> None:
    write_pretraining(results, small_plans(dataset="Dataset500_Source", features=(4, 6, 10)))
    unet = wanted(None, "unet", trainer="nnUNetTrainer_SSLUNetFinetune")
    with pytest.raises(UserError, match=r"another network.*nnssl_transfer"):
        find_checkpoint(unet, results)
    same = write_pretraining(results, small_plans(dataset="Dataset501_Same"))
    assert find_checkpoint(unet, results).path == same
    assert find_checkpoint(wanted(None), results).path == same


def test_encodings_need_a_method_that_encodes_pixels(results: Path, only: Path) -> None:
    encodings = wanted(None, "encodings", trainer="nnUNetTrainer_SSLEncodings")
    with pytest.raises(UserError, match="encodes no single pixels"):
        find_checkpoint(encodings, results)
    sam = write_pretraining(results, small_plans(dataset="Dataset501_Sam"), method="sam")
    older(sam, 100)
    assert find_checkpoint(encodings, results) == Choice(sam)


def test_environment_names_a_file_a_folder_or_random(
    results: Path, only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_pretraining(results, small_plans(dataset="Dataset501_Other"))
    for value, found in ((other, other), (other.parent, other), ("random", None)):
        monkeypatch.setenv("nnssl_checkpoint", str(value))
        assert find_checkpoint(wanted(), results) == Choice(found)
    monkeypatch.setenv("nnssl_checkpoint", "nowhere.pth")
    with pytest.raises(UserError, match=r"nnssl_checkpoint names .*nowhere.pth"):
        find_checkpoint(wanted(), results)


def test_plans_name_it_below_the_results(results: Path, only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pretraining(results, small_plans(dataset="Dataset501_Other"))
    name = name_of(only, results)
    assert not Path(name).is_absolute()
    planned = wanted(plans=small_plans() | {"nnssl": {"checkpoint": name}})
    assert find_checkpoint(planned, results) == Choice(only)
    moved = results.rename(results.with_name("moved"))
    assert find_checkpoint(planned, moved) == Choice(moved / name)
    monkeypatch.setenv("nnssl_checkpoint", str(moved / name))
    assert find_checkpoint(planned, moved) == Choice(moved / name)
    monkeypatch.setenv("nnssl_checkpoint", "random")
    with pytest.raises(UserError, match=r"the plans name .* and nnssl_checkpoint names random; unset it"):
        find_checkpoint(planned, moved)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nnssl.checkpoints.pretrained import name_of
from nnssl.core.errors import UserError
from nnssl.finetuning.which_run import Choice, Head, Wanted, find_checkpoint
from tests.finetuning.plans import small_plans
from tests.pretrainings import write_pretraining


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

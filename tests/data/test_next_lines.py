from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nnssl.cli import pretrain
from nnssl.data.next_lines import (
    ANY_TRAINER,
    TRAINERS,
    Way,
    after_planning,
    command,
    device_flag,
    plan_lines,
    predict_line,
    rendered,
    train_line,
    trainer_for,
)
from nnssl.data.presets import presets
from nnssl.data.report import PreparedDataset
from nnssl.methods.registry import IMPORTED, method_names


def test_rendered__comments_only_where_there_is_a_choice() -> None:
    assert rendered([Way(("a b",), "do it")]) == "next:\n  a b"
    assert rendered([Way(("a", "b"), "do it"), Way(("c",), "leave it")]) == (
        "next:\n  # do it\n  a\n  b\n  # or leave it\n  c"
    )


def test_command__quotes_what_a_shell_would_take_apart() -> None:
    line = command("nnssl_match", "-q", Path("/with space/a'b"), "-p", 1.5)
    assert shlex.split(line) == ["nnssl_match", "-q", "/with space/a'b", "-p", "1.5"]


def test_device_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_flag("cuda") == () and device_flag("cpu") == ("-device", "cpu")
    for there in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert device_flag() == (() if there else ("-device", "cpu"))
        assert device_flag(ours=True) == () and device_flag("cpu", ours=True) == (("-device", "cpu") if there else ())


def test_lines__datasets_that_a_number_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    odd = "Dataset1017_A (new)"
    assert plan_lines("Dataset017_B", odd, "Dataset018_C") == (
        "nnUNetv2_plan_and_preprocess -d 17 18 -c 3d_fullres",
        f"nnssl_plan_and_preprocess -d '{odd}' -c 3d_fullres",
    )
    assert shlex.split(train_line(odd, "3d_fullres", "0", "-x", "y z", device="cpu")) == [
        "nnUNetv2_train", odd, "3d_fullres", "0", "-x", "y z", "-device", "cpu"
    ]  # fmt: skip
    images = tmp_path / odd / "imagesTs"
    for known in (False, True):
        line = predict_line(odd, "3d_lowres", "all", "T", "nnUNetPlans", "checkpoint_best.pth", "mps")
        given = str(images) if known else "INPUT"
        assert shlex.split(line) == [
            "nnUNetv2_predict", "-d", odd, "-i", given, "-o", "OUTPUT", "-c", "3d_lowres", "-f", "all", "-tr", "T",
            "-chk", "checkpoint_best.pth", "-device", "mps",
        ]  # fmt: skip
        images.mkdir(parents=True, exist_ok=True)
        (images / "case_0000.nii.gz").touch()


def test_trainer_for__every_method() -> None:
    assert TRAINERS.keys() <= {*method_names(), IMPORTED}  # others have no trainer of their own
    assert {trainer_for(method) for method in method_names() if method not in TRAINERS} <= {ANY_TRAINER}
    assert {trainer_for(method, any_plans=True) for method in ("pimpic", "voco", "mae", "alice", "another")} == {
        "nnUNetTrainer_SSLProbe"
    }
    assert trainer_for("lapn", any_plans=True) == trainer_for("lapn") == "nnUNetTrainer_LAPN"


@pytest.mark.parametrize("plans", ["nnUNetPlans", *sorted(presets())])
def test_after_planning__the_method_of_a_preset(plans: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    prepared = [PreparedDataset(name, plans, "3d_lowres", tmp_path / name / "data", tmp_path)
                for name in ("Dataset500_A", "Dataset501_B")]  # fmt: skip
    ((line,),) = (way.commands for way in after_planning(prepared, 1, "--allow_other_intensities"))
    if plans in ("nnsslPlans_lapn_segmentation", "nnsslPlans_lapn_student"):
        assert line.startswith("nnUNetv2_train 500 3d_lowres all -tr nnUNetTrainer_LAPN") and f"-p {plans}" in line
        return
    arguments = pretrain.parser().parse_args(shlex.split(line)[1:])
    assert (arguments.dataset_ids, arguments.plans, arguments.configuration) == (["500", "501"], plans, "3d_lowres")
    assert arguments.allow_other_intensities
    assert arguments.method in plans or plans in ("nnUNetPlans", "nnsslPlans_tiny") or "primus" in plans
    assert ("primus" in plans) <= (arguments.method == "mae")

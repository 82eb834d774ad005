from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nnssl.cli import plan_and_preprocess, pretrain, transfer
from nnssl.core.errors import UserError
from nnssl.demo.recipes import head_of
from nnssl.demo.steps import Folders, Record, Step, demo_steps
from nnssl.methods.options import override
from nnssl.methods.registry import get_method, method_names


def _steps(home: Path, method: str = "vox2vec", seeds: tuple[int, ...] = (0,)) -> list[Step]:
    return demo_steps(Record(home, {}, {}, []), method, seeds, "cpu")


PARSERS = {
    "nnssl_plan_and_preprocess": plan_and_preprocess.parser,
    "nnssl_pretrain": pretrain.parser,
    "nnssl_transfer": transfer.parser,
}


def test_demo_steps__the_commands_of_one_seed_in_order(tmp_path: Path) -> None:
    steps = _steps(tmp_path)
    assert [step.command[0] for step in steps] == [
        "nnssl_plan_and_preprocess", "nnssl_pretrain", "nnssl_transfer", "nnssl_transfer",
        *["nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder"] * 2,
    ]  # fmt: skip
    assert len({step.key for step in steps}) == len(steps)
    train = [step for step in steps if step.command[0] == "nnUNetv2_train"]
    first = " ".join(train[0].command)
    assert first.startswith("nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_SSLLinearProbe")
    # both probes differ in nothing but the plans, which name the weights
    assert train[1].command == tuple(shlex.split(first.replace("From500_vox2vec", "From500_random")))
    assert train[0].variables == train[1].variables and "nnssl_num_epochs" in train[0].variables


@pytest.mark.parametrize("method", method_names())
def test_demo_steps__our_commands_understand_their_arguments(tmp_path: Path, method: str) -> None:
    for step in _steps(tmp_path, method, (0, 1)):
        if step.command[0] in PARSERS:
            arguments = PARSERS[step.command[0]]().parse_args(list(step.command[1:]))
            if step.command[0] == "nnssl_pretrain":
                config = override(get_method(method).config_class(), arguments.options)
                assert config.warmup_steps < config.num_epochs * config.steps_per_epoch // 4
                assert arguments.alignment == ("position" if method == "alice" else None)  # no run of lapn or sam


@pytest.mark.parametrize("method", method_names())
def test_demo_steps__the_head_suits_the_method_and_both_weights_train_alike(tmp_path: Path, method: str) -> None:
    pretrained, random = (s for s in _steps(tmp_path, method) if s.command[0] == "nnUNetv2_train")
    head = head_of(method)
    assert head.trainer in pretrained.command and "{weights}" in head.title
    assert random.command == tuple(word.replace(f"_{method}", "_random") for word in pretrained.command)
    assert pretrained.variables == random.variables == head.variables


def test_demo_steps__a_seed_has_results_of_its_own_and_shares_the_data(tmp_path: Path) -> None:
    one, two = _steps(tmp_path), _steps(tmp_path, seeds=(0, 1))
    assert [step.key for step in two[: len(one)]] == [step.key for step in one]  # so that a demo can be extended
    added = two[len(one) :]
    assert [step.command[0] for step in added if step.command[0].startswith("nnssl")] == ["nnssl_pretrain"]
    assert "seed=1" in added[0].command
    assert {step.folders.results for step in added} == {tmp_path / "nnUNet_results_seed1"}
    assert {step.folders.preprocessed for step in two} == {tmp_path / "nnUNet_preprocessed"}
    products = [step.product for step in two if step.product]
    assert len(set(products)) == len(products)


def test_folders__predictions_are_those_that_are_evaluated(tmp_path: Path) -> None:
    folders = Folders(tmp_path, 2)
    assert folders.summary("random").parent == folders.predictions("random")
    steps = {step.key: step for step in _steps(tmp_path, seeds=(2,))}
    out = str(folders.predictions("random"))
    assert out in steps["predict_random_seed2"].command and out in steps["evaluate_random_seed2"].command


def test_line__can_be_typed_into_a_shell(tmp_path: Path) -> None:
    home = tmp_path / "with space"
    for step in _steps(home):
        words = shlex.split(step.line())
        assert tuple(words[len(step.variables) :]) == step.command
        assert dict(word.split("=", 1) for word in words[: len(step.variables)]) == step.variables


def test_step__finished_as_the_record_says_and_begun_with_a_checkpoint(tmp_path: Path) -> None:
    plan, pretrain, *_ = _steps(tmp_path)
    assert pretrain.continues is not None and pretrain.continues.parent == pretrain.product
    assert plan.state() == pretrain.state() == "missing" and plan.left() == [*plan.command]
    pretrain.continues.parent.mkdir(parents=True)
    pretrain.continues.touch()
    assert pretrain.state() == "begun" and pretrain.left() == [*pretrain.command, "--c"]
    for code, finished in ((None, []), (1, []), (0, [pretrain.key])):
        pretrain.note(2, code, anew=False)
        assert pretrain.record.finished == finished
    assert pretrain.state() == "finished" and pretrain.note(1, 0, anew=True) == 1
    assert Record.open(tmp_path, {}).finished[0] == pretrain.key and plan.state() == "missing"


def test_step__environment_leads_no_command_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "elsewhere.pth")
    monkeypatch.setenv("nnUNet_results", "/elsewhere")
    train = next(step for step in _steps(tmp_path) if step.key.startswith("train"))
    environment = train.environment()
    assert environment["nnUNet_results"] == str(tmp_path / "nnUNet_results") and "nnssl_checkpoint" not in environment
    assert environment["nnssl_num_epochs"] == train.variables["nnssl_num_epochs"] and "PATH" in environment


@pytest.mark.parametrize("name", ["plan", "pretrain", "transfer"])
def test_step__lines_to_type_next_are_not_shown(tmp_path: Path, name: str) -> None:
    step = next(step for step in _steps(tmp_path) if step.key.startswith(name))
    lines = [
        "epoch 1/7  loss 2.27",
        "next:",
        "  # recommended",
        "  nnssl_transfer -s 500 -t 17 -m vox2vec",
        "warning: two",
    ]
    assert [line for line in lines if step.shown.search(f"{line}\n")] == [lines[0], lines[-1]]


SETTINGS = {"method": "vox2vec", "device": "cpu"}


def test_record__remembers_finished_steps(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "demo", SETTINGS)
    record.note("plan", 1.234, anew=True, finished=False)
    assert Record.open(tmp_path / "demo", SETTINGS).finished == []
    record.note("plan", 0, anew=False, finished=True)
    again = Record.open(tmp_path / "demo", SETTINGS)
    assert again.seconds == {"plan": 1.2} and again.finished == ["plan"]


def test_note__attempts_that_were_continued_add_up(tmp_path: Path) -> None:
    record = Record.open(tmp_path, SETTINGS)
    record.note("train", 2, anew=True, finished=False)
    record.note("train", 3, anew=False, finished=False)
    assert record.seconds == {"train": 5}
    record.note("train", 4, anew=True, finished=False)
    assert record.seconds == {"train": 4}


def test_record__other_settings_are_refused(tmp_path: Path) -> None:
    Record.open(tmp_path, SETTINGS)
    with pytest.raises(
        UserError, match=r"other settings \(method vox2vec, device cpu\); choose another folder with -o"
    ):
        Record.open(tmp_path, {**SETTINGS, "device": "cuda"})


def test_record__a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="has no demo"):
        Record.open(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="has no demo"):
        Record.open(tmp_path / "thesis.txt", SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_record__damaged(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Record.open(tmp_path, SETTINGS)

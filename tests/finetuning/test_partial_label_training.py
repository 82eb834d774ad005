"""The way of a user from a dataset without a list to a training on partial labels."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnssl.cli.annotated_labels import main as annotated_labels
from nnssl.core.errors import UserError
from tests.finetuning.half_annotated import KIDNEY, NAME, PLANS
from tests.finetuning.test_partial_labels import COMPLETE, _make, folders, prepared

__all__ = ["folders", "prepared"]  # fixtures


def _start(folders: Path) -> None:
    """Train as far as lists and label maps are looked at."""
    trainer = _make(folders)
    trainer.initialize()
    trainer.get_tr_and_val_datasets()


def _next(said: str) -> list[str]:
    """The one command that the last line of an output names."""
    (command,) = re.findall(r"(?:type|now train): (\w+ .*)", said.strip().splitlines()[-1])
    return shlex.split(command)


def _type(capsys: pytest.CaptureFixture[str], command: list[str]) -> tuple[int, list[str]]:
    """Run `nnssl_annotated_labels`; its exit code, and the command to type next."""
    assert command[0] == "nnssl_annotated_labels"
    try:
        annotated_labels([*command[1:], "-np", "1"])
        code = 0
    except SystemExit as stopped:
        code = int(str(stopped.code))
    out, err = capsys.readouterr()
    return code, _next(err or out)


def test_loop__every_message_names_the_one_thing_to_do_next(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No list, propose, propose --write, an edit that contradicts, check, check --write, train."""
    raw, home = (folders / name / NAME / "dataset.json" for name in ("raw", "preprocessed"))
    complete, train = json.loads(raw.read_text()), ["nnUNetv2_train", NAME, "CONFIGURATION", "FOLD", "-tr"]
    for file in (raw, home):
        file.write_text(json.dumps({k: v for k, v in complete.items() if k != "annotated_labels"}))
    propose, check = (["nnssl_annotated_labels", action, "-d", NAME] for action in ("propose", "check"))
    assert _type(capsys, check) == (1, [*propose, "--write"])
    assert _type(capsys, propose) == (0, [*propose, "--write"])
    assert _type(capsys, [*propose, "--write"]) == (0, [*check, "--write"])
    assert _type(capsys, propose) == (0, check)
    assert _type(capsys, [*propose, "--write"]) == (1, [*check, "--write"])  # there is a list
    assert _type(capsys, check)[1][:5] == train

    given = json.loads(raw.read_text())["annotated_labels"]
    assert given == complete["annotated_labels"]
    raw.write_text(json.dumps(complete | {"annotated_labels": given | {COMPLETE: ["lung"]}}))  # a kidney is drawn
    before = home.read_bytes()
    for flag in ([], ["--write"]):
        assert _type(capsys, [*check, *flag]) == (1, [*check, "--write"])
    assert home.read_bytes() == before
    with pytest.raises(UserError) as refused:
        _start(folders)
    assert _next(str(refused.value)) == [*check, "--write"]
    home.write_bytes(raw.read_bytes())  # by hand
    with pytest.raises(UserError, match=f"{COMPLETE} holds kidney") as refused:
        _start(folders)
    assert _next(str(refused.value)) == check

    file = folders / "raw" / NAME / "labelsTr" / f"{COMPLETE}.nii.gz"  # mend the label map instead of the list
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image * sitk.Cast(image != KIDNEY, image.GetPixelID()), str(file))
    assert _type(capsys, [*check, "--write"])[1][:5] == train
    with pytest.raises(UserError, match="preprocessed") as refused:
        _start(folders)
    assert _next(str(refused.value)) == ["nnssl_plan_and_preprocess", "-d", NAME, "-p", PLANS]
    raw.write_text(json.dumps(complete))  # or the list after all
    assert _type(capsys, check) == (1, [*check, "--write"])
    code, then = _type(capsys, [*check, "--write"])
    assert (code, then) == (0, [*train, "nnUNetTrainer_PartialLabels"])
    _start(folders)

"""Processes that are named as nnU-Net's commands, and one of the commands itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nnssl_trainers
from nnssl.core.errors import UserError, sentence_of
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.phantoms import write_ct_dataset
from tests.preloaded import write_commands

STUB = """
import sys
import nnssl
from nnssl.core.errors import UserError

class ProcessRaisedException(Exception):
    pass

try:
    raise UserError("the plans are gone; type this")
except UserError as error:
    if sys.argv[1] == "itself":
        raise
    if sys.argv[1] == "cause":
        raise RuntimeError("of nnU-Net") from error
    raise ZeroDivisionError("a bug") from None
"""


def _run(name: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = folder / name
    if not script.exists():
        script.write_text(STUB)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip


@pytest.mark.parametrize("how", ["itself", "cause"])
def test_speak_in_nnunet_commands__the_sentence_and_nothing_else(tmp_path: Path, how: str) -> None:
    done = _run("nnUNetv2_train", tmp_path, how)
    assert (done.returncode, done.stderr) == (1, "error: the plans are gone; type this\n")


def test_speak_in_nnunet_commands__bugs_and_other_programs_are_left_alone(tmp_path: Path) -> None:
    assert "ZeroDivisionError: a bug" in _run("nnUNetv2_predict", tmp_path, "bug").stderr
    other = _run("program_of_the_user", tmp_path, "itself")
    assert other.returncode == 1 and "Traceback" in other.stderr


def test_sentence_of__what_torch_brings_from_a_spawned_process() -> None:
    class ProcessRaisedException(Exception):
        """As torch's."""

    text = ("\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File ...\n"
            "nnssl.core.errors.UserError: no checkpoint; type:\n  one\n  another\n")  # fmt: skip
    after = "\nDuring handling of the above exception, another exception occurred:\n\nRuntimeError: of nnU-Net\n"
    for trace in (text, text + after):
        assert sentence_of(ProcessRaisedException(trace)) == "no checkpoint; type:\n  one\n  another"
    assert sentence_of(ProcessRaisedException("ValueError: x")) is None and sentence_of(ValueError("x")) is None
    assert sentence_of(UserError("x")) == "x"


def test_nnunetv2_train__a_mistake_ends_in_our_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent))
    write_ct_dataset(tmp_path / "raw", 17, "Target", 3, shape=(20, 32, 32), labelled=True)
    plan_and_preprocess([17], preset="nnsslPlans_tiny", num_processes=1, preprocess=False, show_progress=False)
    (tmp_path / "nnUNetv2_train").write_text(
        "from nnunetv2.run.run_training import run_training_entry\nrun_training_entry()"
    )
    line = "17 3d_fullres 0 -tr nnUNetTrainer_SSLProbe -p nnsslPlans_tiny -device cpu"
    done = _run("nnUNetv2_train", tmp_path, *line.split(), nnssl_num_epochs="many")
    said = done.stderr.strip().splitlines()
    assert done.returncode == 1 and said[-1].startswith("error: nnssl_num_epochs takes a whole number")
    assert "Traceback" not in done.stdout + done.stderr
    command = write_commands(tmp_path / "commands") / "nnUNetv2_train"
    done = subprocess.run([str(command), *line.replace("nnsslPlans_tiny", "nnUNetPlans").split()], capture_output=True,
                          text=True, check=False)  # fmt: skip
    said = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "Dataset017_Target has no plans nnUNetPlans" in said[-1]
    assert "nnUNetv2_plan_and_preprocess -d 17 " in said[-1] and "Traceback" not in done.stdout + done.stderr

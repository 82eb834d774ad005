"""The tab key in bash, with the code that `nnssl -completion bash` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.cli import demo, transfer
from nnssl.cli.completion import complete, datasets, plans, runs, trainers
from nnssl.cli.run import complete_if_asked

COMMAND = "#!{python}\nimport sys\nfrom nnssl.cli.{module} import main\nmain()\n"
# Asks as bash does when the tab key is pressed at the end of each line.
ASK = """
eval "$(nnssl -completion bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    set -- $COMP_LINE
    registered=$(complete -p "$1")
    registered=${registered##*-F }
    ${registered%% *} "$1"
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders with two datasets, a pretraining and plans."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "raw" / "Dataset017_Organs").mkdir(parents=True)
    (tmp_path / "results" / "Dataset500_Thorax" / "nnssl_sam__nnUNetPlans__3d_fullres" / "fold_all").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset017_Organs").mkdir(parents=True)
    for name in ("dataset", "splits_final", "myPlans"):
        (tmp_path / "preprocessed" / "Dataset017_Organs" / f"{name}.json").write_text("{}")
    return tmp_path


def test_completers__what_is_there(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "own").mkdir()
    (folders / "own" / "mine.py").write_text("class nnUNetTrainer_Mine(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(folders / "own"))
    assert datasets("") == {"17": "Dataset017_Organs", "500": "Dataset500_Thorax"}
    assert list(datasets("Dat")) == ["Dataset017_Organs", "Dataset500_Thorax"]
    run = str(folders / "results" / "Dataset500_Thorax" / "nnssl_sam__nnUNetPlans__3d_fullres")
    assert runs("") == [run] and runs("random:x") == [f"random:{run}"]
    assert {"myPlans", "nnUNetPlans", "nnsslPlans_tiny"} <= set(plans()) and "dataset" not in plans()
    assert {"nnUNetTrainer", "nnUNetTrainer_Mine", "nnUNetTrainer_SSLProbe"} <= set(trainers())
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{name}")
    assert not datasets("") and not runs("")


def test_complete__never_runs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)  # was removed
    with pytest.raises(SystemExit) as stopped:
        complete(demo.parser())
    assert stopped.value.code == 1
    complete_if_asked(demo.parser)
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit):
        demo.main([])


def test_bash__the_tab_key(folders: Path) -> None:
    pytest.importorskip("argcomplete")
    bash = shutil.which("bash")
    assert bash is not None
    scripts = folders / "bin"
    scripts.mkdir()
    modules = {"nnssl": "commands", "nnssl_transfer": "transfer", "nnssl_visualize": "visualize"}
    for name, module in modules.items():
        (scripts / name).write_text(COMMAND.format(python=sys.executable, module=module))
        (scripts / name).chmod(0o755)
    run = str(folders / "results" / "Dataset500_Thorax" / "nnssl_sam__nnUNetPlans__3d_fullres")
    expected = {
        "nnssl_transfer -s 500 -t ": "17 500",
        "nnssl_transfer -s 500 -t 17 -m r": "random ",
        "nnssl_transfer -s 500 -t 17 --overwrite_v": "--overwrite_volumes ",
        "nnssl_visualize sim": "similarity ",
        "nnssl_visualize pca -m ": f"{run} ",
        "nnssl_visualize pca -m $nnUNet_results/Dataset5": f"{run} ",
        "nnssl_visualize pca -m x -i $nnUNet_raw/Dat": f"{folders / 'raw' / 'Dataset017_Organs'}/",
        "nnssl_visualize pca -m x -device ": "cuda cpu",
    }
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                                "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    answers = subprocess.run([bash, "-c", ASK], input="".join(f"{line}\n" for line in expected), cwd=folders, text=True,
                             env=environment, capture_output=True, check=True).stdout  # fmt: skip
    assert dict(zip(expected, answers.splitlines(), strict=True)) == expected


def test_transfer__takes_random_for_a_method() -> None:
    assert transfer.parser().parse_args(["-s", "1", "-t", "2", "-m", "random"]).method == "random"

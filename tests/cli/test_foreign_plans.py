"""Every command that reads plans of other people: what they name is not called. The commands run in this process."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import nnssl
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.deployment.session import Description
from nnssl.networks.trusted import VARIABLE
from tests.benchmarking.labels import describe
from tests.deployment.models import DATASET_JSON, model_plans, write_model
from tests.foreign_plans import HARM, give_command_to_checkpoint, hide_command_in, with_command
from tests.phantoms import write_ct_dataset
from tests.pretrainings import write_pretraining

NAME, PLANS = "Dataset500_Source", "nnsslPlans_tiny"
TINY = ["-p", PLANS, "-device", "cpu", "-o", "num_epochs=1", "steps_per_epoch=1", "patch_size=16,16,16"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with a preprocessed dataset, a labelled one, and finished pretrainings of three methods."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        _set_folders(patch, root)
        write_ct_dataset(root / "raw", 500, "Source", 2, shape=(16, 20, 20))
        write_ct_dataset(root / "raw", 17, "Target", 2, shape=(16, 20, 20), labelled=True)
        plan_and_preprocess([500], preset=PLANS, num_processes=1, show_progress=False)
    plans = json.loads((root / "preprocessed" / NAME / f"{PLANS}.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8, 8]
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    (root / "preprocessed" / NAME / f"{PLANS}.json").write_text(json.dumps(plans))
    for method in ("vox2vec", "lapn", "mae"):
        write_pretraining(root / "results", plans, method=method)
    return root


@pytest.fixture
def folders(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy for one test, in the environment."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    _set_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def _set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(root / name))


def _checkpoint(root: Path, method: str) -> Path:
    (file,) = (root / "results").glob(f"*/nnssl_{method}__*/fold_all/checkpoint_final.pth")
    return file


def _tree(root: Path) -> dict[Path, int]:
    """Files and their times, but for the report of preprocessing, which every command writes."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith("_left_out.json"))
    return {path: path.stat().st_mtime_ns for path in files}


def _said(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before it exits with 1."""
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"nnssl.cli.{command}").main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("vox2vec", "embed -m {run} -i {image} -o {root}/out -device cpu"),
        ("lapn", "match -m {run} -q {image} -k {image} -p 1 1 1"),
        ("vox2vec", "visualize similarity -m {run} -i {image} -o {root}/a.png"),
        ("lapn", "visualize pca -m {run} -i {image} -o {root}/a.png"),
        ("vox2vec", "visualize tsne -m {run} -i {image} -o {root}/a.png"),
        ("lapn", "visualize matches -m {run} -i {image} -k {image} -o {root}/a.png"),
        ("vox2vec", "visualize views -m {run} -o {root}/a.png"),
        ("mae", "visualize reconstruction -m {run} -o {root}/a.png"),
        ("vox2vec", "transfer -s 500 -t 17 -m vox2vec -np 1"),
        ("vox2vec", "transfer -s 500 -t 17 -m random:vox2vec -np 1"),
        ("vox2vec", "pretrain -d 500 -m mae -p nnsslPlans_tiny -device cpu --overwrite -pretrained {run}"),
        ("vox2vec", "pretrain -d 500 -m vox2vec -p nnsslPlans_tiny -device cpu --c"),
        ("lapn", "pretrain -d 500 -m alice -p nnsslPlans_tiny -device cpu -alignment {run}"),
    ],
)
def test_checkpoints__commands_call_nothing_that_their_plans_name(
    method: str, line: str, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = folders / "called"
    run = give_command_to_checkpoint(_checkpoint(folders, method), marker)
    image = folders / "raw" / NAME / "imagesTr" / "case_000_0000.nii.gz"
    before = _tree(folders)
    command, *arguments = line.format(run=run, image=image, root=folders).split()
    said = _said(command, arguments, capsys)
    assert f"{run} name '{HARM}' as nonlin" in said and VARIABLE in said
    assert not marker.exists() and _tree(folders) == before


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("pretrain", ["-m", "vox2vec", *TINY]), ("pretrain", ["-m", "lapn", *TINY, "batch_size=2"])],
)
def test_plans_of_a_dataset__build_no_network_that_they_must_not_name(
    command: str, arguments: list[str], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, marker = folders / "preprocessed" / NAME / f"{PLANS}.json", folders / "called"
    file.write_text(json.dumps(with_command(json.loads(file.read_text()), marker)))
    shutil.rmtree(folders / "results")
    assert f"'{HARM}' as nonlin" in _said(command, ["-d", "500", *arguments], capsys)
    assert not marker.exists() and not any((folders / "results").iterdir())


@pytest.mark.parametrize(
    ("line", "key", "name"),
    [
        (f"plan_and_preprocess -d 500 -p {PLANS} -np 1", "resampling_fn_data", "recursive_find_python_class"),
        (f"plan_and_preprocess -d 500 -p {PLANS} -np 1", "image_reader_writer", "np"),
        (f"pretrain -d 500 -m vox2vec -p {PLANS} -device cpu", "preprocessor_name", "multiprocessing"),
        (f"benchmark -d 500 -p {PLANS} -tr nnUNetTrainer -o bench --dry_run", "normalization_schemes", ["np"]),
        (f"benchmark -d 500 -p {PLANS} -tr nnUNetTrainer -o bench --dry_run", "label_manager", "torch"),
    ],
)
def test_plans_of_a_dataset__preprocess_with_nothing_that_they_must_not_name(
    line: str, key: str, name: Any, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folders / "preprocessed" / NAME / f"{PLANS}.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    for folder in file.parent.glob(f"{configuration['data_identifier']}*"):
        shutil.rmtree(folder)
    (plans if key in ("image_reader_writer", "label_manager") else configuration)[key] = name
    file.write_text(json.dumps(plans))
    command, *arguments = line.split()
    said = _said(command, arguments, capsys)
    assert re.search(rf"{file}: .*{key}.*: is no .* of nnU-Net", said)
    assert not list(file.parent.rglob("*.b2nd"))


@pytest.mark.parametrize("spoil", ["plans", "checkpoint"])
@pytest.mark.parametrize(
    "line",
    ["export_onnx -m {model} -o {root}/a.onnx", "efficiency -m {model} -i {root} -device cpu"],
)
def test_model_folders__commands_run_nothing(
    line: str, spoil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, marker = write_model(tmp_path / "model"), tmp_path / "called"
    if spoil == "plans":
        (model / "plans.json").write_text(json.dumps(with_command(model_plans(), marker)))
    else:
        hide_command_in(model / "fold_0" / "checkpoint_final.pth", marker)
    command, *arguments = line.format(model=model, root=tmp_path).split()
    said = _said(command, arguments, capsys)
    assert HARM.rpartition(".")[2] in said and str(model) in said
    assert not marker.exists() and not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    "line",
    ["predict_onnx -m {file} -i {root} -o {root}/out -device cpu", "efficiency -m {file} -i {root} -device cpu"],
)
def test_onnx_files__commands_call_nothing_that_their_plans_name(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = model_plans()
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "recursive_find_python_class"
    file = tmp_path / "student.onnx"
    # fmt: off
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["logits"])], "g", [value],
                                   [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1])])
    # fmt: on
    proto = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)])
    described = Description(plans, DATASET_JSON, "3d_fullres", 0, "nnUNetTrainer", None, "0.1")
    onnx.helper.set_model_props(proto, described.to_metadata())
    onnx.save(proto, str(file))
    command, *arguments = line.format(file=file, root=tmp_path).split()
    said = _said(command, arguments, capsys)
    assert all(part in said for part in (str(file), "resampling_fn_data", "'recursive_find_python_class'"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "name"), [("image_reader_writer", "np"), ("label_manager", "torch")])
def test_evaluate__reads_with_nothing_that_plans_must_not_name(
    key: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(tmp_path)
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: name}))
    said = _said("evaluate", [str(tmp_path), str(tmp_path)], capsys)
    assert all(part in said for part in (str(file), key, repr(name)))


def _calls(file: Path) -> set[str]:
    """Names of what a file calls, such as load of torch.load."""
    called = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return {ast.unparse(function) for function in called}


@pytest.mark.parametrize(
    ("is_called", "where"),
    [
        (lambda name: name == "torch.load", {"data/trusted.py", "checkpoints/files.py", "interchange/opening.py"}),
        (lambda name: name.endswith("get_network_from_plans"), {"networks/build.py"}),
        (lambda name: name.endswith((".initialize_from_trained_model_folder", "pydoc.locate")), set()),
        (lambda name: name.endswith(".build_network_architecture"),
         {"finetuning/base_trainer.py", "deployment/model_folder.py"}),
    ],
)  # fmt: skip
def test_package__has_one_place_for_each_way_to_code(is_called: Callable[[str], bool], where: set[str]) -> None:
    room = Path(nnssl.__file__).parent
    assert {f.relative_to(room).as_posix() for f in room.rglob("*.py") if any(map(is_called, _calls(f)))} == where

"""What users type and import: commands with their help and calls, functions with their signatures, trainers."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import pkgutil
import re
import shlex
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import nnssl
import nnssl_trainers
from tests.golden import inside
from tests.golden.compare import plain

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_KINDS = ("similarity", "pca", "tsne", "matches", "views", "reconstruction")  # of nnssl_visualize

# What a line has to mean: the function that it calls, and the arguments after what the function adds itself.
LINES: dict[str, str] = {
    "nnssl_plan_and_preprocess -d 500": "plan_and_preprocess",
    "nnssl_plan_and_preprocess -d 500 Dataset501_More -pl nnUNetPlannerResEncM -gpu_memory_target 24 "
    "-overwrite_target_spacing 2 1 1 -overwrite_plans_name mine --overwrite_plans --overwrite_volumes -c 3d_lowres "
    "-np 2 -num_parts 3 -part_id 1 --reorient --allow_other_intensities --clean --strict --no_pbar":
        "plan_and_preprocess",
    "nnssl_plan_and_preprocess -d 500 -p nnsslPlans_tiny --no_pp --verbose": "plan_and_preprocess",
    "nnssl_pretrain -d 500 -m vox2vec": "pretrain",
    "nnssl_pretrain -d 500 501 -m alice -c 3d_lowres -p nnsslPlans_tiny -f 0 -device cpu -num_gpus 2 --c --overwrite "
    "-o num_epochs=5 seed=1 -pretrained a.pth -alignment b.pth -probe 17 -probe_every 2 --allow_other_intensities "
    "-np 3": "pretrain",
    "nnssl_transfer -s 500 -t 17": "transfer",
    "nnssl_transfer -s 500 -t 17 -m random:lapn -c 3d_lowres -p mine -f 0 -np 2 -overwrite_plans_name other "
    "--overwrite_plans --overwrite_volumes --allow_other_intensities": "transfer",
    "nnssl_import weights.pth -o Dataset900_Public": "import_weights",
    "nnssl_import model -f 0 -o Dataset900_Public -license MIT --overwrite": "import_weights",
    "nnssl_annotated_labels propose -d 17": "propose_annotated_labels",
    "nnssl_annotated_labels propose -d 17 --write -np 2": "propose_annotated_labels",
    "nnssl_annotated_labels check -d 17": "check_annotated_labels",
    "nnssl_annotated_labels check -d 17 --write -np 2": "check_annotated_labels",
    "nnssl_export -m run -o out": "export",
    "nnssl_export -m run -o out -format safetensors -license mit -benchmark table --overwrite": "export",
    "nnssl_export_onnx -m model -o a.onnx": "export_onnx",
    "nnssl_export_onnx -m model -f all -chk checkpoint_best.pth -o a.onnx": "export_onnx",
    "nnssl_predict_onnx -i in -o out -m a.onnx": "predict_onnx",
    "nnssl_predict_onnx -i in -o out -m a.onnx b.onnx -step_size 0.7 --disable_tta --save_probabilities "
    "--continue_prediction -npp 1 -nps 2 -prev_stage_predictions first -num_parts 4 -part_id 3 -device cpu -threads 2 "
    "--disable_progress_bar --not_on_device --verbose": "predict_onnx",
    "nnssl_predict_onnx -i in -o out -m a.onnx --c": "predict_onnx",
    "nnssl_efficiency -m model -i in": "measure_efficiency",
    "nnssl_efficiency -m model -i in -o a.csv -f 0 1 -chk checkpoint_best.pth -step_size 0.7 --disable_tta -device cpu "
    "-threads 2": "measure_efficiency",
    "nnssl_evaluate truth predicted": "evaluate",
    "nnssl_evaluate truth predicted -djfile d.json -pfile p.json -o out -tolerance 2 liver=5 -absent exclude -np 2 "
    "--chill": "evaluate",
    "nnssl_benchmark -d 17 -tr nnUNetTrainer -o out": "benchmark",
    "nnssl_benchmark -d 17 -tr nnUNetTrainer nnUNetTrainer_SSLProbe -o out -c 2d -p mine -fractions 5 50 -seeds 2 "
    "-test fold_0 -baseline nnUNetTrainer -device cpu -tolerance 3 -absent exclude -num_parts 2 -part_id 1 -np 2 "
    "--dry_run --collect": "benchmark",
    "nnssl_benchmark -d 17 -tr nnUNetTrainer -o out -cases 1 2": "benchmark",
    "nnssl_benchmark -d 600 -target covid -m a=run random:run -o out -fractions 5 50 -seeds 2 -device cpu":
        "benchmark_scan_labels",
    "nnssl_benchmark -d 600 -target covid -m a=run -o out --finetune -set num_epochs=5 -num_parts 2 -part_id 1 "
    "--dry_run --collect": "benchmark_scan_labels",
    "nnssl_match -m run -q a -k b -p 1 -2 3.5": "match",
    "nnssl_match -m run -q a -k b -p 1 -2 3.5 -o a.png --voxel --ras -device cuda --allow_other_intensities": "match",
    "nnssl_embed -m run -i 17 -o out": "embed",
    "nnssl_embed -m run -i 17 -o out -what dense -format nifti -components 3 -level 1 -pca pca.npz -device cpu "
    "--overwrite --allow_other_intensities": "embed",
    "nnssl_classify -d 600 -m run": "classify",
    "nnssl_classify -d 600 -m run -splits folds.json": "classify",
    "nnssl_classify -d 600 -m random -p mine -c 3d_lowres -target covid -task regression --finetune -f 0 1 -folds 3 "
    "-o out -set num_epochs=5 -memory 2 --c --overwrite -seed 1 -device cpu -np 2 --allow_other_intensities":
        "classify",
    "nnssl_classify_predict -i in -o a.csv -m model": "classify_predict",
    "nnssl_classify_predict -i in -o a.csv -m model -heat maps -device cpu --overwrite --allow_other_intensities":
        "classify_predict",
    "nnssl_visualize similarity -m run -i a -o a.png": "visualize_similarity",
    "nnssl_visualize similarity -m run -i a -o a.png -k b -p 1 -2 3.5 --voxel --ras -level 1 -seed 2 -device cuda "
    "--allow_other_intensities": "visualize_similarity",
    "nnssl_visualize pca -m run -i a -o a.png": "visualize_pca",
    "nnssl_visualize pca -m run -i a -o a.png -p 1 -2 3.5 --voxel --ras -level 1 -seed 2": "visualize_pca",
    "nnssl_visualize tsne -m run -i a b -o a.png": "visualize_tsne",
    "nnssl_visualize tsne -m run -i a -o a.png -l labels -labels liver 2 --per_label 9 --perplexity 5 -level 1 -seed 2":
        "visualize_tsne",
    "nnssl_visualize matches -m run -i a -k b c -o a.png": "visualize_matches",
    "nnssl_visualize matches -m run -i a -k b -o a.png -p 1 2 3 -p 4 5 6 --voxel --ras -l labels -labels liver "
    "-level 1 -seed 2": "visualize_matches",
    "nnssl_visualize views -m run -o a.png": "visualize_views",
    "nnssl_visualize views -m run -o a.png -i case_1 case_2 --step 3": "visualize_views",
    "nnssl_visualize reconstruction -m run -o a.png": "visualize_reconstruction",
    "nnssl_visualize reconstruction -m run -o a.png -i case_1 --step 3": "visualize_reconstruction",
    "nnssl_demo": "run_demo",
    "nnssl_demo -o out -m sam -seeds 2 -device cuda": "run_demo",
    "nnssl_doctor": "check_installation",
}  # fmt: skip


class _Called(BaseException):
    """Ends a command where it calls its function; no command catches it."""


def commands() -> dict[str, Callable[[list[str]], Any]]:
    """Every command that pyproject.toml installs, as a function of its arguments."""
    found = re.findall(r'^(nnssl\w*) = "([\w.]+):(\w+)"$', _PYPROJECT.read_text(), re.MULTILINE)
    return {name: getattr(import_module(module), function) for name, module, function in found}


def helps() -> list[str]:
    """Commands and sub-commands that have a help."""
    return [*commands(), *(f"nnssl_visualize {kind}" for kind in _KINDS)]


def help_text(line: str) -> list[str]:
    """What `--help` prints, in the form of Python 3.10 to 3.12."""
    name, *rest = line.split()
    output = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), contextlib.redirect_stdout(output):
        try:
            commands()[name]([*rest, "--help"])
        except SystemExit as stopped:
            assert not stopped.code, f"{line} --help ends with {stopped.code}"
    return normal_help(output.getvalue())


def normal_help(text: str) -> list[str]:
    """Lines of a help text without what Python's versions wrap and repeat differently."""
    about, _, text = text.partition("usage: ")
    usage, blank, rest = text.partition("\n\n")
    rest = re.sub(r"(?m)^optional arguments:$", "options:", rest)
    # -a METAVAR, --all METAVAR until Python 3.12; -a, --all METAVAR after it
    rest = re.sub(r"(?m)^(  -\w+) ([A-Z][\w.]*)((?:, --?\w+ \2)+)", lambda m: m[1] + m[3], rest)
    arguments = re.split(r" (?=\[?-)", " ".join(f"usage: {usage}".split()))  # one a line
    return [*about.splitlines(), *arguments, *(line.rstrip() for line in (blank + rest).splitlines())]


def call(line: str) -> dict[str, Any]:
    """The function that a line calls, with all its arguments, those too that it adds by itself."""
    command, *arguments = shlex.split(line)
    module, name = inside.called_by(command, LINES[line])
    signature, given = inspect.signature(getattr(module, name)), []

    def called(*args: Any, **kwargs: Any) -> None:
        given.append(signature.bind(*args, **kwargs))
        raise _Called

    silent = contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(module, name, called), silent, contextlib.suppress(_Called):
        commands()[command](arguments)
    assert given, f"{line} does not call {LINES[line]}"
    given[0].apply_defaults()
    return {LINES[line]: {key: _argument(value) for key, value in given[0].arguments.items()}}


def signature(name: str) -> dict[str, Any]:
    """A public function as its caller sees it, with the fields of what it returns."""
    value = getattr(nnssl, name)
    if not callable(value) or inspect.isclass(value):  # an error has no signature
        return {"type": type(value).__name__}
    made = inspect.signature(value)
    returned = typing.get_type_hints(value)["return"]
    kinds: list[Any] = [kind for kind in (returned, *typing.get_args(returned)) if dataclasses.is_dataclass(kind)]
    return {
        "parameters": [_parameter(parameter) for parameter in made.parameters.values()],
        "returns": _annotation(made.return_annotation),
        "fields": {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in kinds},
    }


def trainers() -> list[str]:
    """Classes of nnssl_trainers, as nnU-Net finds them by name."""
    rooms = [import_module(f"nnssl_trainers.{module.name}") for module in pkgutil.iter_modules(nnssl_trainers.__path__)]
    return sorted(name for room in rooms for name, kind in vars(room).items()
                  if inspect.isclass(kind) and kind.__module__ == room.__name__)  # fmt: skip


def _parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    only = " (keyword only)" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ""
    return f"{parameter.name}: {_annotation(parameter.annotation)}{default}{only}"


def _annotation(annotation: Any) -> str:
    """As the source has it, or as Python shows it, without the modules' names."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(\w+\.)+", "", text)


def _argument(value: Any) -> Any:
    return "a function" if callable(value) else plain(value)

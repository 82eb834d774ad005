"""Numbers on command lines and in variables that are none, or that nothing could be done with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from nnssl.analysis.points import generator, locate
from nnssl.benchmarking.subsets import choose_test_set
from nnssl.data.planning import PlanRequest
from nnssl.features.geometry import ImageGeometry
from nnssl.features.images import PreparedImage
from nnssl.finetuning.base_trainer import apply_settings
from tests.bad_inputs.json_files import LABELLED, raw, source_run, write
from tests.bad_inputs.rows import Row, command, function
from tests.pretrainings import tiny_plans


def _prepared(folder: Path) -> None:
    raw(folder)
    source_run(folder)
    for name in ("nnUNetPlans", "nnsslPlans_tiny"):
        write(folder / "pre" / "Dataset500_Source" / f"{name}.json", tiny_plans(name))
    write(folder / "pre" / "Dataset500_Source" / "dataset.json", LABELLED)


def _command_rows() -> Iterator[Row]:
    plan, train = ("plan_and_preprocess", "-d", "500"), ("pretrain", "-d", "500", "-m", "vox2vec", "-device", "cpu")
    benchmark = ("benchmark", "-d", "500", "-tr", "nnUNetTrainer", "-o", "{}/o", "--dry_run")
    demo = command("demo", "-o", "{}/demo", "-seeds", str(10**9))
    predict = ("predict_onnx", "-i", "{}/raw", "-o", "{}/o", "-m", "{}/x.onnx", "-device", "cpu")
    flags: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
        (plan, "-gpu_memory_target", ("nan", "inf", "-1", "0", "1e400")),
        (plan, "-num_parts", ("0", "-1")),
        (plan, "-part_id", ("-1", "1")),
        (plan, "-np", ("0", "-2")),
        (train, "-num_gpus", ("0", "-1")),
        (train, "-probe_every", ("0", "-1")),
        (train, "-o", ("learning_rate=nan", "learning_rate=inf", "weight_decay=1e400", "temperature=-inf", "seed=-1",
                       "num_epochs=" + "9" * 5000, "num_epochs=1e9", "num_epochs=100000000", "batch_size=",
                       "batch_size=999999999999", "patch_size=1,2", "patch_size=1,2,x", "betas=0.9", "betas=0.9,inf",
                       "optimiser=", "=1", "lr=1", "seed", "amsgrad=1", "projection_dim=99999999999999999999")),
        (benchmark, "-seeds", ("0", "-1", "1000000000")),
        (benchmark, "-np", ("0",)),
        (benchmark, "-tolerance", ("nan", "inf", "-1", "wide", "liver=nan", "lever=1")),
        (predict, "-step_size", ("nan", "inf", "0", "-1", "2")),
        (predict, "-num_parts", ("0",)),
        (predict, "-npp", ("-1",)),
    ]  # fmt: skip
    for start, flag, values in flags:
        for value in values:
            shown = value.split("=")[0] if flag == "-o" else flag
            yield Row(f"{start[0]} {flag} {value[:30]}", _prepared, command(*start, flag, value), (shown,), 1)
    for values in (("nan", "1", "1"), ("1", "inf", "1"), ("0", "1", "1"), ("-1", "1", "1"), ("1e9", "1", "1")):
        run = command(*plan, "-overwrite_target_spacing", *values)
        yield Row(f"-overwrite_target_spacing {' '.join(values)}", _prepared, run, ("-overwrite_target_spacing",), 1)
    pictures = "{}/res/Dataset500_Source/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all"
    for value in ("nan", "inf", "0", "-5"):
        run = command("visualize", "tsne", "-m", pictures, "-i", "{}/a", "-o", "{}/o.png", "--perplexity", value)
        yield Row(f"visualize --perplexity {value}", _prepared, run, ("--perplexity",), 1)
    yield Row("demo -seeds 10**9", lambda _: None, demo, ("seeds",), 1)
    views = command("visualize", "views", "-m", pictures, "-o", "{}/o.png", "--step", "-1")
    yield Row("visualize --step -1", _prepared, views, ("--step",), 1)


def _function_rows() -> Iterator[Row]:
    geometry = ImageGeometry.__new__(ImageGeometry)  # the point is refused before it is looked for
    image = PreparedImage("case_1", np.zeros((1, 4, 4, 4), np.float32), geometry)
    for value in ("nan", "inf", "-inf"):
        run = function(lambda _, v=value: locate(image, [float(v), 0.0, 0.0], False, False))  # type: ignore[misc]
        yield Row(f"match -p {value}", lambda _: None, run, (value, "-p"), 1)
    for value in ("nan", "inf", "0", "100", "-5", "1e400", "many"):
        run = function(lambda _, v=value: choose_test_set(v, ["a", "b", "c"], None, None, ".nii.gz"))  # type: ignore[misc]
        yield Row(f"benchmark -test {value}", lambda _: None, run, ("-test",), 1)
    for seed in (-1, 2**32):
        run = function(lambda _, s=seed: generator(s))  # type: ignore[misc]
        yield Row(f"visualize -seed {seed}", lambda _: None, run, ("-seed", str(seed)), 1)
    for memory in (float("nan"), float("inf")):
        run = function(lambda _, m=memory: PlanRequest(gpu_memory_target=m))  # type: ignore[misc]
        yield Row(f"plan_and_preprocess(gpu_memory_target={memory})", lambda _: None, run, ("-gpu_memory_target",), 1)


def _variable_rows() -> Iterator[Row]:
    for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        for value in ("many", "-1", "1.5", "nan", "9" * 5000):
            run_plan = command("plan_and_preprocess", "-d", "500")
            yield Row(f"{variable}={value[:10]}", _prepared, run_plan, (variable,), 1, env={variable: value})

    def run(block: dict[str, Any]) -> Any:
        return function(lambda _: apply_settings(SimpleNamespace(), block))

    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr"):
        for value in ("nan", "inf", "-1", "0", "ten", "1e400", "²", "9" * 5000):
            variable = f"nnssl_{name}"
            yield Row(f"{variable}={value[:10]}", lambda _: None, run({}), (variable,), 1, env={variable: value})
        for number in (float("nan"), -1, True, [3], 0):
            yield Row(f'plans["nnssl"], {name}: {number}', lambda _: None, run({name: number}), (name,), 1)


ROWS = [*_command_rows(), *_function_rows(), *_variable_rows()]

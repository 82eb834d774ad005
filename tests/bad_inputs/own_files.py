"""Checkpoints, ONNX metadata and files of this package with a fault; the message must name the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nnssl.analysis.embed import _open_folder
from nnssl.benchmarking.evaluation_report import read_evaluation
from nnssl.checkpoints.files import load_checkpoint
from nnssl.deployment.model_folder import check_model_folder
from nnssl.deployment.session import Description
from nnssl.features.stored import has_embeddings
from nnssl.finetuning.start import Start
from nnssl.finetuning.trainer import refuse_mixture
from nnssl.pretraining.folder import check_output, load_resumed
from nnssl.pretraining.metrics import read_rows
from tests.bad_inputs.json_files import GONE, LABELLED, changed, checkpoint, raw, source_run, volumes, write
from tests.bad_inputs.rows import Row, Said, command, function
from tests.pretrainings import tiny_plans


def _checkpoint_rows() -> Iterator[Row]:
    faults: dict[str, tuple[Any, tuple[str, ...]]] = {
        "another format": ({"format": 2}, ("format",)),
        "stock weights": (lambda: {"format": 1, "network_weights": {"a": torch.zeros(1)}}, ("method", "plans")),
        "no dictionary": (lambda: [1], ("not a checkpoint",)),
        "no method": ({"method": GONE}, ("method", "missing")),
        "no tensors": ({"method_state": {}}, ("method_state",)),
        "numbers among the tensors": ({"method_state": {"backbone.x": 3}}, ("method_state", "backbone.x")),
        "config: list": ({"config": []}, ("config",)),
        "plans: text": ({"plans": "nnUNetPlans"}, ("plans",)),
        "plans: a path": ({"plans.plans_name": "../../x"}, ("plans.plans_name", "'../../x'")),
        "plans: dataset a path": ({"plans.dataset_name": "/tmp/x"}, ("plans.dataset_name",)),
        "plans: data_identifier": ({"plans.configurations.3d_fullres.data_identifier": "/etc"}, ("'/etc'",)),
        "configuration: another": ({"configuration": "3d_lowres"}, ("configuration", "3d_fullres")),
        "configuration: a path": ({"configuration": "../x"}, ("configuration",)),
        "dataset_json: no channels": ({"dataset_json": {"file_ending": ".nii.gz"}}, ("dataset_json.channel_names",)),
        "dataset_json: file_ending": ({"dataset_json.file_ending": "/x"}, ("dataset_json.file_ending",)),
        "orientation": ({"orientation": 3}, ("orientation",)),
        "epoch": ({"epoch": -1}, ("epoch",)),
        "cases": ({"train_cases": ["../x"]}, ("train_cases", "'../x'")),
    }
    for name, (change, expected) in faults.items():

        def make(folder: Path, change: Any = change) -> None:
            torch.save(change() if callable(change) else changed(checkpoint(), change), folder / "c.pth")

        yield Row(
            f"checkpoint, {name}", make, function(lambda f: load_checkpoint(f / "c.pth")), ("c.pth", *expected), 1
        )
    resumed = function(lambda f: load_resumed(f / "c.pth"))
    yield Row("checkpoint, nothing to go on with", lambda f: torch.save(checkpoint(), f / "c.pth"), resumed,
              ("optimiser_state", "step", "train_cases"), 1)  # fmt: skip


def _checkpoint_rows_of_commands() -> Iterator[Row]:
    """One bad name on every way by which a command opens a checkpoint."""
    bad = {"plans.configurations.3d_fullres.data_identifier": "../../etc"}

    def make(folder: Path) -> None:
        file = source_run(folder) / "checkpoint_final.pth"
        torch.save(changed(checkpoint(), bad), file)
        raw(folder)
        raw(folder, LABELLED, "Dataset017_Target")

    run = "{}/res/Dataset500_Source/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all"
    image = "{}/raw/Dataset500_Source/imagesTr/case_1_0000.nii.gz"
    for name, ran in {
        "transfer": command("transfer", "-s", "500", "-t", "17"),
        "embed": command("embed", "-m", run, "-i", image, "-o", "{}/o", "-device", "cpu"),
        "match": command("match", "-m", run, "-q", image, "-k", image, "-p", "1", "1", "1"),
        "visualize pca": command("visualize", "pca", "-m", run, "-i", image, "-o", "{}/o.png"),
        "visualize views": command("visualize", "views", "-m", run, "-o", "{}/o.png"),
    }.items():
        yield Row(f"checkpoint met by {name}", make, ran, ("data_identifier", "'../../etc'"), 1)


def _onnx_rows() -> Iterator[Row]:
    described = {"plans": tiny_plans(), "dataset_json": LABELLED, "configuration": "3d_fullres", "fold": 0,
                 "trainer_name": "nnUNetTrainer", "mirroring_axes": [0, 1], "nnssl_version": "1"}  # fmt: skip
    metadata = Description(**described).to_metadata()  # type: ignore[arg-type]
    faults: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        "nothing": (dict.fromkeys(metadata, GONE), ("nnssl_export_onnx",)),
        "another format": ({"format": 9}, ("description",)),
        "no JSON": ({"plans": "{"}, ("description",)),
        "no plans": ({"plans": GONE}, ("plans", "missing")),
        "a path": ({"plans": {**tiny_plans(), "plans_name": "../x"}}, ("plans.plans_name",)),
        "configuration": ({"configuration": "2d"}, ("configuration", "3d_fullres")),
        "fold": ({"fold": "../0"}, ("fold",)),
        "trainer": ({"trainer_name": "os.system"}, ("trainer_name",)),
        "mirroring_axes": ({"mirroring_axes": "all"}, ("mirroring_axes",)),
        "labels": ({"dataset_json": {**LABELLED, "labels": {}}}, ("dataset_json.labels",)),
    }
    for name, (change, expected) in faults.items():
        values = {**metadata, **{f"nnssl.{k.removeprefix('nnssl.')}": v if v is GONE or v == "{" else json.dumps(v)
                                 for k, v in change.items()}}  # fmt: skip
        found = {key: value for key, value in values.items() if value is not GONE}
        yield Row(f"ONNX metadata, {name}", lambda _: None,
                  function(lambda _, m=found: Description.from_metadata(m, "student.onnx")),  # type: ignore[misc]
                  ("student.onnx", *expected), 1)  # fmt: skip


def _record_rows() -> Iterator[Row]:
    """Files of this package itself, damaged."""
    model = "Dataset500_Source/nnUNetTrainer_SSLProbe__P__3d_fullres"

    def mixture(folder: Path) -> None:
        home = folder / "res" / model
        refuse_mixture(Start({"checkpoint": "x", "network": {}}, None, "", []), home, home / "fold_0")

    def begun(folder: Path, file: str, content: Any) -> None:
        write(folder / "res" / model / "fold_0" / "checkpoint_latest.pth", "")
        write(folder / "res" / model / file, content)

    def encoded(folder: Path) -> bool:
        write(folder / "pre" / "Dataset500_Source" / "images_embeddings_k" / "a.json", '{"image_bytes": ')
        return has_embeddings(volumes(folder), "a", "k")

    def model_folder(folder: Path, plans: Any = None, dataset: Any = LABELLED) -> None:
        write(folder / "m/plans.json", tiny_plans() if plans is None else plans)
        write(folder / "m/dataset.json", dataset)

    looked_at = function(lambda f: check_model_folder(f / "m", ["0"], "checkpoint_final.pth"))
    settings = {"what": "case", "format": "npz", "method": "mae", "weights": "0"}
    opened = function(lambda f: _open_folder(f / "o", settings, overwrite=True))
    cases: list[tuple[str, Callable[[Path], object], Callable[[Path], Said], tuple[str, ...]]] = [
        ("embedding.json, cut", lambda f: write(f / "o/embedding.json", "{"), opened, ("embedding.json", "JSON")),
        ("embedding.json, another's", lambda f: write(f / "o/embedding.json", {"what": "text"}), opened,
         ("what", "weights")),
        ("config.json, another's", lambda f: write(f / "o/config.json", {"model": "GPT"}),
         function(lambda f: check_output(f / "o", resume=False, overwrite=True)), ("config.json", "method")),
        ("config.json, missing", lambda f: write(f / "o/thesis.txt", "years of work"),
         function(lambda f: check_output(f / "o", resume=False, overwrite=True)), ("config.json", "missing")),
        ("nnssl_transfer.json, cut", lambda f: begun(f, "fold_0/nnssl_transfer.json", '{"check'), function(mixture),
         ("nnssl_transfer.json",)),
        ("nnssl_transfer.json, list", lambda f: begun(f, "fold_0/nnssl_transfer.json", []), function(mixture),
         ("nnssl_transfer.json", "object")),
        ("metrics.jsonl, a line in the middle", lambda f: write(f / "m.jsonl", "{}{\n{}\n"),
         function(lambda f: read_rows(f / "m.jsonl")), ("m.jsonl", "line 1")),
        ("metrics.jsonl, no epoch", lambda f: write(f / "m.jsonl", '{"loss": 1.0}\n'),
         function(lambda f: read_rows(f / "m.jsonl")), ("line 1", "epoch")),
        ("metrics.jsonl, text for a loss", lambda f: write(f / "m.jsonl", '{"epoch": 1, "step": 1, "loss": "x"}\n'),
         function(lambda f: read_rows(f / "m.jsonl")), ("loss",)),
        ("nnssl_evaluation.json, text for Dice", lambda f: write(f / "e.json", {
            "tolerance_mm": {"a": 1}, "structures": {"a": 1}, "absent": "flare", "cases": {"c": {"a": {
                "dice": "1", "nsd": 1, "reference_voxels": 1, "predicted_voxels": 1}}}}),
         function(lambda f: read_evaluation(f / "e.json")), ("cases.c.a.dice",)),
        ("demo.json, cut", lambda f: write(f / "demo/demo.json", "{"), command("demo", "-o", "{}/demo"),
         ("demo.json",)),
        ("demo.json, list", lambda f: write(f / "demo/demo.json", {"settings": [], "seconds": {}, "finished": []}),
         command("demo", "-o", "{}/demo"), ("settings",)),
        ("model folder, plans of another kind", lambda f: model_folder(f, plans={}), looked_at, ("plans_name",)),
        ("model folder, dataset.json cut", lambda f: model_folder(f, dataset="{"), looked_at, ("dataset.json",)),
        ("model folder, a path", lambda f: model_folder(f, plans=changed(tiny_plans(), {"dataset_name": "/tmp/x"})),
         looked_at, ("dataset_name", "'/tmp/x'")),
    ]  # fmt: skip
    for name, make, run, expected in cases:
        yield Row(name, make, run, expected, 1)
    yield Row("encodings' JSON, cut", lambda _: None, function(encoded), ("False",), 0, "they are made again")
    yield Row("metrics.jsonl, last line cut", lambda f: write(f / "m.jsonl", '{"epo'),
              function(lambda f: read_rows(f / "m.jsonl")), ("[]",), 0, "a kill leaves that")  # fmt: skip


ROWS = [*_checkpoint_rows(), *_checkpoint_rows_of_commands(), *_onnx_rows(), *_record_rows()]

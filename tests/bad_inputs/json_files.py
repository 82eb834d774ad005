"""nnU-Net's JSON files with a fault; the message must name the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.files import FINAL
from nnssl.data.raw import read_dataset_json
from nnssl.data.volumes import Channel, VolumeFolder
from nnssl.finetuning.base_trainer import refuse_bad_files
from nnssl.pretraining.held_out import hold_out
from tests.bad_inputs.rows import Row, command, function
from tests.pretrainings import CT_JSON, checkpoint_content, tiny_plans

GONE = object()  # in place of a value: the key is taken out
LABELLED = {**CT_JSON, "labels": {"background": 0, "liver": 1, "spleen": 2}}
BENCHMARK = command("benchmark", "-d", "500", "-tr", "nnUNetTrainer", "-o", "{}/o", "--dry_run")
PLAN = command("plan_and_preprocess", "-d", "500", "-np", "1", "-p", "nnsslPlans_tiny")


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values; `a.b` is the entry b of the object a."""
    copied = deepcopy(content)
    for path, value in changes.items():
        at, *keys = copied, *path.split(".")
        for key in keys[:-1]:
            at = at[key]
        if value is GONE:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
    return copied


def write(file: Path, content: Any) -> None:
    """Write JSON, or text or bytes as they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def raw(folder: Path, content: Any = CT_JSON, name: str = "Dataset500_Source") -> None:
    """A raw dataset whose only image is empty: no row comes to the point of opening it."""
    write(folder / "raw" / name / "dataset.json", content)
    write(folder / "raw" / name / "imagesTr" / "case_1_0000.nii.gz", "")


@cache
def checkpoint() -> dict[str, Any]:
    """Entries of the checkpoint of Dataset500_Source."""
    return {"format": 1, **checkpoint_content(tiny_plans(), CT_JSON)}


def source_run(folder: Path) -> Path:
    """The finished pretraining of Dataset500_Source."""
    run = folder / "res" / "Dataset500_Source" / "nnssl_vox2vec__nnsslPlans_tiny__3d_fullres" / "fold_all"
    run.mkdir(parents=True)
    torch.save(checkpoint(), run / FINAL)
    return run


def _dataset_rows() -> Iterator[Row]:
    ct, none = {"0": "CT"}, {"background": 0}
    files = {"images": ["imagesTr/a.nii.gz"]}
    faults: dict[str, tuple[Any, tuple[str, ...]]] = {
        "empty": ("", ("dataset.json",)),
        "cut": (json.dumps(CT_JSON)[:-5], ("dataset.json", "JSON")),
        "NaN": (json.dumps({**CT_JSON, "numTraining": float("nan")}), ("NaN",)),
        "UTF-16": (json.dumps(CT_JSON).encode("utf-16"), ("dataset.json", "JSON")),
        "list": ([], ("dataset.json", "object")),
        "a key twice": ('{"labels": {"background": 0, "liver": 1, "liver": 2}}', ("liver", "twice")),
        "all keys missing": ({}, ("channel_names", "labels", "file_ending")),
        "nnU-Net v1": ({"modality": ct, "labels": {"0": "background", "1": "liver"}, "training": []},
                       ("labels", "nnUNetv2_convert_old_nnUNet_dataset")),
        "channel_names: list": ({"channel_names": ["CT"]}, ("channel_names", "object")),
        "channel_names: empty": ({"channel_names": {}}, ("channel_names",)),
        "channel_names: gap": ({"channel_names": {"0": "CT", "2": "PET"}}, ("channel_names", "order")),
        "channel_names: other order": ({"channel_names": {"1": "PET", "0": "CT"}}, ("channel_names", "order")),
        "channel_names: number": ({"channel_names": {"0": 7}}, ("channel_names.0", "text")),
        "modality: list": ({"channel_names": GONE, "modality": ["CT"]}, ("channel_names", "object")),
        "labels: list": ({"labels": ["background"]}, ("labels", "object")),
        "labels: text": ({"labels": {**none, "liver": "1"}}, ("labels.liver", "'1'")),
        "labels: boolean": ({"labels": {**none, "liver": True}}, ("labels.liver", "True")),
        "labels: fraction": ({"labels": {**none, "liver": 1.0}}, ("labels.liver", "1.0")),
        "labels: negative": ({"labels": {**none, "liver": -1}}, ("labels.liver", "-1")),
        "labels: huge": ({"labels": {**none, "liver": 10**400}}, ("labels.liver",)),
        "labels: region of text": ({"labels": {**none, "liver": [1, "2"]}}, ("labels.liver",)),
        "labels: empty region": ({"labels": {**none, "liver": []}}, ("labels.liver",)),
        "labels: no background": ({"labels": {"liver": 1}}, ("labels", "background")),
        "labels: background 1": ({"labels": {"background": 1, "liver": 0}}, ("labels", "background")),
        "labels: background is a list": ({"labels": {"background": [0]}}, ("labels", "background")),
        "labels: gap": ({"labels": {**none, "liver": 1, "spleen": 3}}, ("labels", "0, 1, 3")),
        "labels: ignore in the middle": ({"labels": {**none, "ignore": 1, "liver": 2}}, ("labels", "ignore")),
        "labels: ignore is a region": ({"labels": {**none, "liver": 1, "ignore": [2, 3]}}, ("labels", "ignore")),
        "labels: two of one value": ({"labels": {**none, "liver": 1, "leber": 1}}, ("liver", "leber")),
        "regions without an order": ({"labels": {**none, "a": [1, 2], "b": 2}}, ("regions_class_order", "2 regions")),
        "regions: short order": ({"labels": {**none, "a": [1, 2], "b": 2}, "regions_class_order": [1]},
                                 ("regions_class_order",)),
        "regions: order of text": ({"regions_class_order": ["1"]}, ("regions_class_order[0]",)),
        "file_ending: no dot": ({"file_ending": "nii.gz"}, ("file_ending", "nii.gz")),
        "file_ending: number": ({"file_ending": 1}, ("file_ending", "text")),
        "file_ending: a path": ({"file_ending": "./../x.nii.gz"}, ("file_ending",)),
        "reader: unknown": ({"overwrite_image_reader_writer": "NibabelIOReorient"},
                            ("overwrite_image_reader_writer", "NibabelIOReorient")),
        "reader: null": ({"overwrite_image_reader_writer": None}, ("overwrite_image_reader_writer",)),
        "numTraining: text": ({"numTraining": "12"}, ("numTraining",)),
        "dataset: list": ({"dataset": ["case_1"]}, ("dataset", "object")),
        "dataset: no case": ({"dataset": {}}, ("dataset", "no case")),
        "dataset: images is text": ({"dataset": {"a": {"images": "imagesTr/a.nii.gz"}}}, ("dataset.a.images", "list")),
        "dataset: no image": ({"dataset": {"a": {"images": []}}}, ("dataset.a.images",)),
        "dataset: no images": ({"dataset": {"a": {"label": "labelsTr/a.nii.gz"}}}, ("dataset.a.images", "missing")),
        "dataset: image is null": ({"dataset": {"a": {"images": [None]}}}, ("dataset.a.images[0]",)),
        "dataset: label is a number": ({"dataset": {"a": {**files, "label": 3}}}, ("dataset.a.label",)),
        "annotated_labels: list": ({"annotated_labels": ["liver"]}, ("annotated_labels",)),
        "annotated_labels: text": ({"annotated_labels": {"case_1": "liver"}}, ("annotated_labels.case_1",)),
    }  # fmt: skip
    for name, (change, expected) in faults.items():
        whole = isinstance(change, (str, bytes, list)) or not change or "training" in change
        content = change if whole else changed(CT_JSON, change)
        yield Row(f"dataset.json, {name}", lambda f, c=content: raw(f, c), PLAN, expected, 1)  # type: ignore[misc]


def _accepted_datasets() -> Iterator[Row]:
    run = function(lambda f: ",".join(read_dataset_json(f / "raw" / "Dataset500_Source")))
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    for name, content, intent in (
        ("byte order mark", "\ufeff" + json.dumps(CT_JSON), "some editors write one"),
        ("modality", changed(CT_JSON, {"channel_names": GONE, "modality": {"0": "CT"}}), "nnU-Net takes the older key"),
        ("keys of others", {**CT_JSON, "licence": ["CC-BY"], "release": 1.0}, "they are kept"),
        ("regions", {**CT_JSON, "labels": regions, "regions_class_order": [1, 2]}, "they are as nnU-Net wants them"),
        ("names in any script", {**CT_JSON, "dataset": {"Köln (2) [a].b": {"images": ["a.nii.gz"]}}}, "no separator"),
    ):
        yield Row(f"dataset.json, {name}", lambda f, c=content: raw(f, c), run,  # type: ignore[misc]
                  ("labels", "file_ending"), 0, intent)  # fmt: skip


def _dataset_rows_of_other_commands() -> Iterator[Row]:
    """The same file on the other ways into the package."""
    wrong = changed(LABELLED, {"labels.liver": "1"})

    def preprocessed(folder: Path) -> None:
        raw(folder)
        write(folder / "pre" / "Dataset500_Source" / "nnUNetPlans.json", tiny_plans("nnUNetPlans"))
        write(folder / "pre" / "Dataset500_Source" / "dataset.json", wrong)

    def predictions(folder: Path) -> None:
        write(folder / "labels" / "a.nii.gz", "")
        write(folder / "dj.json", wrong)
        write(folder / "plans.json", tiny_plans())

    def run_and_wrong(folder: Path) -> None:
        source_run(folder)
        raw(folder, wrong)

    def target(folder: Path) -> None:
        source_run(folder)
        raw(folder, wrong, "Dataset017_Target")

    for name, make, run in (
        ("annotated_labels", lambda f: raw(f, wrong), command("annotated_labels", "propose", "-d", "500")),
        ("pretrain", lambda f: raw(f, wrong), command("pretrain", "-d", "500", "-m", "mae", "-device", "cpu")),
        ("benchmark", preprocessed, BENCHMARK),
        ("evaluate", predictions, command("evaluate", "{}/labels", "{}/labels", "-djfile", "{}/dj.json", "-pfile",
                                          "{}/plans.json")),
        ("transfer", target, command("transfer", "-s", "500", "-t", "17")),
        ("embed", run_and_wrong,
         command("embed", "-m", "{}/res/Dataset500_Source/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres", "-i", "500",
                 "-o", "{}/o", "-device", "cpu")),
        ("a trainer", lambda _: None, function(lambda _: refuse_bad_files(tiny_plans(), "3d_fullres", wrong))),
    ):  # fmt: skip
        yield Row(f"dataset.json met by {name}", make, run, ("labels.liver", "'1'"), 1)


def _plans_rows() -> Iterator[Row]:
    of = "configurations.3d_fullres."
    faults: dict[str, tuple[Any, tuple[str, ...]]] = {
        "cut": ('{"plans_name": "nnssl', ("JSON",)),
        "list": ([], ("object",)),
        "all keys missing": ({}, ("plans_name", "dataset_name", "configurations")),
        "plans_name: a path": ({"plans_name": "../../x"}, ("plans_name", "'../../x'")),
        "plans_name: another file's": ({"plans_name": "dataset"}, ("plans_name", "dataset.json")),
        "dataset_name: a path": ({"dataset_name": "Dataset500_a/../../b"}, ("dataset_name",)),
        "dataset_name: number": ({"dataset_name": 500}, ("dataset_name",)),
        "configurations: list": ({"configurations": []}, ("configurations", "object")),
        "configurations: none": ({"configurations": {}}, ("configurations",)),
        "configurations: a path": ({"configurations": {"../x": {}}}, ("configurations.'../x'",)),
        "transpose_forward": ({"transpose_forward": [0, 1, 1]}, ("transpose_forward",)),
        "image_reader_writer": ({"image_reader_writer": "os"}, ("image_reader_writer", "'os'")),
        "label_manager": ({"label_manager": "system"}, ("label_manager",)),
        "intensities: none": ({"foreground_intensity_properties_per_channel": {}}, ("configurations", "intensities")),
        "intensities: text": ({"foreground_intensity_properties_per_channel.0.std": "1"},
                              ("foreground_intensity_properties_per_channel.0.std",)),
        "intensities: CT without a window": ({"foreground_intensity_properties_per_channel.0.mean": float("nan")},
                                             ("3d_fullres", "channel 0")),
        "data_identifier: a path": ({f"{of}data_identifier": "/etc"}, (f"{of}data_identifier", "'/etc'")),
        "data_identifier: another folder's": ({f"{of}data_identifier": "gt_segmentations"}, (f"{of}data_identifier",)),
        "inherits_from: nobody": ({f"{of}inherits_from": "3d"}, ("3d_fullres", "'3d'")),
        "inherits_from: itself": ({f"{of}inherits_from": "3d_fullres"}, ("3d_fullres", "inherits")),
        "batch_size: 0": ({f"{of}batch_size": 0}, (f"{of}batch_size",)),
        "batch_size: fraction": ({f"{of}batch_size": 2.5}, (f"{of}batch_size",)),
        "batch_size: missing": ({f"{of}batch_size": GONE}, ("3d_fullres", "batch_size")),
        "patch_size: text": ({f"{of}patch_size": "16"}, (f"{of}patch_size",)),
        "patch_size: four axes": ({f"{of}patch_size": [8, 8, 8, 8]}, (f"{of}patch_size",)),
        "patch_size: two axes": ({f"{of}patch_size": [8, 8]}, ("3d_fullres", "patch_size")),
        "spacing: 0": ({f"{of}spacing": [3.0, 0, 1.5]}, (f"{of}spacing[1]",)),
        "spacing: null": ({f"{of}spacing": [3.0, None, 1.5]}, (f"{of}spacing[1]",)),
        "spacing: 1e400": (json.dumps(tiny_plans(spacing=[3, 3, 12345])).replace("12345", "1e400"),
                           (f"{of}spacing[2]",)),
        "normalization_schemes: unknown": ({f"{of}normalization_schemes": ["CT"]}, (f"{of}normalization_schemes[0]",)),
        "use_mask_for_norm: number": ({f"{of}use_mask_for_norm": [0]}, (f"{of}use_mask_for_norm[0]",)),
        "use_mask_for_norm: too many": ({f"{of}use_mask_for_norm": [False, False]}, ("use_mask_for_norm",)),
        "resampling_fn_data: unknown": ({f"{of}resampling_fn_data": "abs"}, (f"{of}resampling_fn_data",)),
        "resampling_fn_data: missing": ({f"{of}resampling_fn_data": GONE}, ("3d_fullres", "resampling_fn_data")),
        "preprocessor_name: unknown": ({f"{of}preprocessor_name": "join"}, (f"{of}preprocessor_name",)),
        "architecture: missing": ({f"{of}architecture": GONE}, ("3d_fullres", "architecture")),
        "architecture: text": ({f"{of}architecture": "UNet"}, (f"{of}architecture",)),
        "architecture: without a class": ({f"{of}architecture.network_class_name": GONE}, ("network_class_name",)),
        "older plans, cut": ({f"{of}architecture": GONE, f"{of}UNet_class_name": "PlainConvUNet"},
                             ("3d_fullres", "conv_kernel_sizes")),
        "nnssl: list": ({"nnssl": []}, ("nnssl",)),
        "nnssl: levels": ({"nnssl": {"levels": "both"}}, ("nnssl.levels",)),
        "nnssl: num_epochs": ({"nnssl": {"num_epochs": -3}}, ("nnssl.num_epochs",)),
        "nnssl: initial_lr": ({"nnssl": {"initial_lr": "fast"}}, ("nnssl.initial_lr",)),
        "nnssl: unlabelled_share": ({"nnssl": {"unlabelled_share": 1.5}}, ("nnssl.unlabelled_share",)),
        "nnssl: checkpoint": ({"nnssl": {"checkpoint": 3}}, ("nnssl.checkpoint",)),
    }  # fmt: skip
    for name, (change, expected) in faults.items():
        content = changed(tiny_plans(), change) if isinstance(change, dict) and change else change

        def make(folder: Path, content: Any = content) -> None:
            raw(folder)
            write(folder / "pre" / "Dataset500_Source" / "nnsslPlans_tiny.json", content)

        yield Row(f"plans, {name}", make, PLAN, ("nnsslPlans_tiny", *expected), 1)


def volumes(folder: Path) -> VolumeFolder:
    """Two preprocessed cases, empty files."""
    images = folder / "pre" / "Dataset500_Source" / "images"
    for case in ("a", "b"):
        for home in (images, images.with_name("images_body")):
            write(home / f"{case}.b2nd", "")
    return VolumeFolder("Dataset500_Source", images, images.with_name("images_body"), (1, 1, 1), (Channel("", 0, 1),))


def _splits_rows() -> Iterator[Row]:
    run = function(lambda folder: hold_out([volumes(folder)], "0", 0))
    faults: dict[str, tuple[Any, tuple[str, ...]]] = {
        "cut": ("[{", ("JSON",)),
        "object": ({"train": []}, ("list",)),
        "no val": ([{"train": ["a"]}], ("[0].val", "missing")),
        "numbers": ([{"train": [1], "val": []}], ("[0].train[0]", "text")),
        "a text": ([{"train": "ab", "val": []}], ("[0].train", "list")),
        "a path": ([{"train": ["a"], "val": ["../b"]}], ("'../b'",)),
        "no fold": ([], ("fold",)),
    }
    for name, (content, expected) in faults.items():

        def make(folder: Path, content: Any = content) -> None:
            volumes(folder)
            write(folder / "pre/Dataset500_Source/splits_final.json", content)

        yield Row(f"splits, {name}", make, run, ("splits_final.json", *expected), 1)


def _fingerprint_rows() -> Iterator[Row]:
    window = {"mean": 1.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}
    good = {"spacings": [[1.0, 1.0, 1.0]], "shapes_after_crop": [[9, 9, 9]], "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": window}}  # fmt: skip
    faults: dict[str, tuple[Any, tuple[str, ...]]] = {
        "cut": ('{"spacings": [[', ("JSON",)),
        "no spacings": ({"spacings": []}, ("spacings",)),
        "spacing 0": ({"spacings": [[1.0, 0.0, 1.0]]}, ("spacings[0][1]",)),
        "shape": ({"shapes_after_crop": [[9, "9", 9]]}, ("shapes_after_crop[0][1]",)),
        "no channel": ({"foreground_intensity_properties_per_channel": {}}, ("foreground_intensity_properties",)),
        "key missing": ({"median_relative_size_after_cropping": GONE}, ("median_relative_size_after_cropping",)),
    }
    for name, (change, expected) in faults.items():
        content = changed(good, change) if isinstance(change, dict) else change

        def make(folder: Path, content: Any = content) -> None:
            raw(folder)
            write(folder / "pre" / "Dataset500_Source" / "dataset_fingerprint.json", content)

        yield Row(f"fingerprint, {name}", make, PLAN, ("dataset_fingerprint.json", *expected), 1)


ROWS = [
    *_dataset_rows(), *_accepted_datasets(), *_dataset_rows_of_other_commands(), *_plans_rows(), *_splits_rows(),
    *_fingerprint_rows(),
]  # fmt: skip

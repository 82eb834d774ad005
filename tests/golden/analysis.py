"""What a finished pretraining says of images, and how predictions are scored."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

import nnssl
from tests.golden.compare import plain, tensors
from tests.golden.world import PRESET, TARGET, World, patch_of

POINT = (20.0, 24.0, 24.0)  # mm, in the muscle of every drawn case


def loaded(world: World) -> dict[str, Any]:
    """The backbone in Python."""
    with world.environment("none"):
        model = nnssl.load_pretrained(world.run("vox2vec"))
        with torch.inference_mode():
            levels = model(patch_of([16, 16, 16]))
    return {"state": tensors(model.state_dict()),
            "levels": [{"shape": list(level.shape), "norm": plain(float(level.double().norm()))} for level in levels]
            }  # fmt: skip


def embedded(world: World) -> dict[str, Any]:
    """Vectors and dense maps of one image."""
    found: dict[str, Any] = {}
    for what in ("case", "dense"):
        output = world.root / f"embedded_{what}"
        with world.environment("none"):
            made = nnssl.embed(world.run("vox2vec"), world.image(), output, what=what, device="cpu",
                               components=3 if what == "dense" else None)  # type: ignore[arg-type]  # fmt: skip
        found[what] = {"cases": list(made.cases), "left_out": plain(made.left_out), "files": _files(output)}
        for file in sorted(output.rglob("*.npz")):
            with np.load(file) as arrays:
                found[what][file.name] = {name: _array(arrays[name]) for name in arrays.files}
    return found


def matched(world: World) -> dict[str, Any]:
    """A point of one image in another."""
    with world.environment("none"):
        match = nnssl.match(world.run("lapn"), world.image(case=0), world.image(case=1), POINT)
    return plain(_numbers(match))


def figure(world: World, kind: str) -> dict[str, Any]:
    """Files of a picture, and the keys of its numbers."""
    image, others = world.image(), [world.image(case=1)]
    runs = {"reconstruction": "mae", "matches": "sam", "views": "pimpic"}
    arguments: dict[str, dict[str, Any]] = {
        "similarity": {"image": image, "key": others[0], "point": POINT},
        "pca": {"image": image, "point": POINT},
        "tsne": {"images": [image, *others], "per_label": 12, "perplexity": 4.0},
        "matches": {"image": image, "keys": others, "points": [POINT]},
        "views": {},
        "reconstruction": {},
    }
    draw: Callable[..., Any] = getattr(nnssl, f"visualize_{kind}")
    output = world.root / "figures" / kind
    output.mkdir(parents=True)
    method = runs.get(kind, "vox2vec")
    with world.environment(method):
        draw(world.run(method), output=output / "a.png", **arguments[kind])
    return {"files": _files(output), "numbers": _outline(json.loads((output / "a.json").read_text()))}


def evaluated(world: World) -> dict[str, Any]:
    """Scores of label maps that are a voxel off."""
    predicted, truth = world.root / "predicted", world.root / "raw" / TARGET / "labelsTr"
    predicted.mkdir()
    for file in truth.iterdir():
        image = sitk.ReadImage(str(file))
        moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 1, axis=2))
        moved.CopyInformation(image)
        sitk.WriteImage(moved, str(predicted / file.name))
    plans = world.preprocessed(TARGET) / f"{PRESET}.json"
    with world.environment("none"):
        evaluation = nnssl.evaluate(
            truth, predicted, truth.parent / "dataset.json", plans, ["1.5", "spine=1"], num_processes=1
        )
    with (predicted / "nnssl_evaluation.csv").open(newline="") as opened:
        table = [[_number(cell) for cell in row] for row in csv.reader(opened)]
    content = json.loads((predicted / "nnssl_evaluation.json").read_text())
    summary = {name: plain(dict(row)) for name, row in evaluation.summary().items()}
    return {"files": _files(predicted), "summary": summary, "table": plain(table), "numbers": _outline(content)}


def annotated(world: World) -> dict[str, Any]:
    """What is proposed for label maps of which one lacks a label, and what the check says of it."""
    raw = world.root / "annotated"
    folder = raw / TARGET
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "imagesTr").symlink_to(world.root / "raw" / TARGET / "imagesTr")
    (folder / "dataset.json").write_bytes((world.root / "raw" / TARGET / "dataset.json").read_bytes())
    for number, file in enumerate(sorted((world.root / "raw" / TARGET / "labelsTr").iterdir())):
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(sitk.Mask(image, image != 2) if number else image, str(folder / "labelsTr" / file.name))
    with world.environment("none", nnUNet_raw=str(raw), nnUNet_preprocessed=str(world.root / "annotated_none")):
        proposed = nnssl.propose_annotated_labels(17, write=True, num_processes=1)
        checked = nnssl.check_annotated_labels(17, num_processes=1)
    content = json.loads((folder / "dataset.json").read_text())
    return {"dataset.json": content, "proposal": plain({k: v for k, v in asdict(proposed).items() if k != "files"}),
            "checked": plain(_numbers(checked))}  # fmt: skip


def preprocessed(world: World, dataset: str) -> dict[str, Any]:
    """Plans, files and volumes that preprocessing leaves."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder = world.preprocessed(dataset)
    plans = json.loads((folder / f"{PRESET}.json").read_text())
    volumes = folder / f"{PRESET}_3d_fullres"
    content: dict[str, Any] = {"plans": plain(plans), "files": {}, "volumes": {}}
    for place in (folder, volumes, folder / f"{PRESET}_3d_fullres_body"):
        # what runs and transfers of this recording add is called golden_..., or is voco's resized bodies
        content["files"][place.name] = sorted(
            path.name for path in place.iterdir() if path.name[:7] != "golden_" and "96x384x384" not in path.name
        )
    with world.environment("none"):
        found = nnUNetDatasetBlosc2(str(volumes))
        for case in sorted(found.identifiers):
            data, labels, _, properties = found.load_case(case)
            content["volumes"][case] = {"data": _array(np.asarray(data)), "properties": sorted(properties),
                                        "labels": _array(np.asarray(labels))}  # fmt: skip
    return content


def _array(values: np.ndarray) -> dict[str, Any]:
    made: dict[str, Any] = {"shape": list(values.shape), "type": str(values.dtype)}
    if values.dtype.kind in "iufb":
        made["norm"] = plain(float(np.linalg.norm(values.astype(np.float64))))
    return made


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _numbers(value: Any) -> Any:
    """A result as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _numbers(entry) for name, entry in vars(value).items()}
    if isinstance(value, np.ndarray):
        return [_numbers(float(entry)) for entry in value.ravel()]
    if isinstance(value, (list, tuple)):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, np.floating) else value


def _outline(value: Any) -> Any:
    """Keys and types; of a list its first entry."""
    if isinstance(value, dict):
        return {key: _outline(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_outline(entry) for entry in value[:1]]
    return type(value).__name__


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text

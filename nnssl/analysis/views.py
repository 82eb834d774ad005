"""What a finished run's method sees and makes of chosen cases, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnssl.analysis.canvas import check_output, save_numbers
from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.distributed import check_device
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.names import check_name
from nnssl.core.plans_schema import PlansFile
from nnssl.data.folders import require_folders
from nnssl.data.guard import Images, names_of_channels, warn_of_images
from nnssl.data.loader import Cases, SampleDataset
from nnssl.data.prepared import volume_folders
from nnssl.data.raw import read_dataset_json
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.base import Batch, Method, Panel, to_device
from nnssl.methods.options import from_plain
from nnssl.methods.registry import get_method, method_names
from nnssl.pretraining.pictures import draw_panels
from nnssl.pretraining.setup import Setup

_DEFAULT = 2  # cases


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Args:
        cases: names of the volumes, in the order of the rows.
        panels: rows of pictures.
        numbers: loss and other terms of the batch, by name; none for views.
    """

    cases: list[str]
    panels: list[list[Panel]]
    numbers: dict[str, float]


@dataclass(frozen=True)
class _Run:
    """A finished run's method with an augmented batch."""

    name: str
    method: Method
    batch: Batch
    cases: list[str]
    epoch: int


def visualize_views(
    model: str | Path,
    output: str | Path,
    cases: Sequence[str] = (),
    step: int = 0,
    device: str = "cpu",
    allow_other_intensities: bool = False,
) -> Drawn:
    """Draw the views that a run's method makes of cases, as `views.png` does at the first step of a training.

    Args:
        model: run folder or checkpoint of any method.
        output: the PNG; its numbers (.json) are written beside it.
        cases: names of preprocessed volumes, such as case_001 or Dataset500_Thorax/case_001; none for the first ones
            of the run, those that were held out before the others.
        step: number of the step whose random crops are drawn.
        device: `cpu` or `cuda`.
        allow_other_intensities: take cases of a dataset of another modality (`nnssl.data.guard`).

    Raises:
        UserError: there is no such checkpoint or volume, or a dataset is of another modality.
    """
    file = check_output(output)
    run = _prepare(model, cases, step, device, allow_other_intensities)
    panels = type(run.method).panels({key: value.cpu() for key, value in run.batch.items()}, run.method.config)
    return _draw(Drawn(run.cases, panels, {}), run, f"views of step {step}", file)


def visualize_reconstruction(
    model: str | Path,
    output: str | Path,
    cases: Sequence[str] = (),
    step: int = 0,
    device: str = "cpu",
    allow_other_intensities: bool = False,
) -> Drawn:
    """Draw what a run's network makes of masked crops, as `reconstruction.png` does; its loss is among the numbers.

    Args:
        model: run folder or checkpoint of a method that reconstructs.
        output: the PNG; its numbers (.json) are written beside it.
        cases: see `visualize_views`.
        step: number of the step whose random crops and masks are drawn.
        device: `cpu` or `cuda`.
        allow_other_intensities: see `visualize_views`.

    Raises:
        UserError: as of `visualize_views`; or the method reconstructs nothing.
    """
    file = check_output(output)
    content = load_checkpoint(checkpoint_of(model))
    if get_method(content["method"]).reconstruction is Method.reconstruction:
        able = " or ".join(n for n in method_names() if get_method(n).reconstruction is not Method.reconstruction)
        raise UserError(f"{content['method']} reconstructs nothing; give a run of {able}, or draw its views")
    run = _prepare(model, cases, step, device, allow_other_intensities)
    with torch.no_grad():
        panels = run.method.reconstruction(run.batch)
        result = run.method.step(run.batch)
    numbers = {name: float(value) for name, value in {"loss": result.loss, **result.terms}.items()}
    return _draw(Drawn(run.cases, panels, numbers), run, f"after epoch {run.epoch}", file)


def _draw(drawn: Drawn, run: _Run, heading: str, file: Path) -> Drawn:
    named = "\n".join(dict.fromkeys(drawn.cases[: len(drawn.panels)]))
    draw_panels(drawn.panels, file, f"{run.name}: {heading}\n{named}")
    pictures = [
        [{"title": p.title, "points": list(p.points), "boxes": list(p.boxes), "shape": p.image.shape} for p in row]
        for row in drawn.panels
    ]
    save_numbers({"method": run.name, "cases": drawn.cases, **drawn.numbers, "pictures": pictures}, file)
    return drawn


def _prepare(model: str | Path, cases: Sequence[str], step: int, device: str, allow: bool) -> _Run:
    check_device(device, 1)
    if step < 0:
        raise UserError(f"--step has to be at least 0, not {step}")
    path = checkpoint_of(model)
    content = load_checkpoint(path)
    method_class = get_method(content["method"])
    volumes = _volumes(content, cases, path)
    _guard(content, volumes.folders, allow)
    config = replace(from_plain(method_class.config_class, content["config"]), batch_size=len(volumes))
    setup = Setup(content["method"], config, content["plans"], content["dataset_json"], {}, content["configuration"],
                  "all", volumes, Cases.of([], []), path.parent)  # fmt: skip
    method = setup.build_method()
    method.load_state_dict(content["method_state"])
    method.to(device).eval()
    dataset = SampleDataset(method_class, config, volumes, setup.val, setup.aligner)
    items = [dataset["train", step, position] for position in range(len(volumes))]
    samples = [_checked(sample) for _, sample in items]
    with torch.no_grad():
        batch = method.augment(to_device(method_class.collate(samples), torch.device(device), method.host_keys))
    return _Run(content["method"], method, batch, [case for case, _ in items], content.get("epoch", 0))


def _checked(sample: Any) -> Any:
    if isinstance(sample, str):  # what failed
        raise UserError(sample)
    return sample


def _volumes(content: dict[str, Any], asked: Sequence[str], path: Path) -> Cases:
    """The chosen preprocessed volumes."""
    known = [*content.get("val_cases", []), *content.get("train_cases", [])]  # Dataset/case
    dataset = content["plans"]["dataset_name"]
    labels = [case if "/" in case else _full_name(case, known, dataset) for case in asked] or known[:_DEFAULT]
    if not labels:
        raise UserError(f"{path} does not say which cases it was trained on; name some with -i")
    (preprocessed,) = require_folders("nnUNet_preprocessed")
    names = list(dict.fromkeys(label.split("/")[0] for label in labels))
    folders = [folder for name in names for folder in _folders(preprocessed, name, content)]
    there = [{f"{folder.name}/{case}" for case in folder.cases()} for folder in folders]
    if missing := [label for label in labels if label not in set().union(*there)]:
        images = next(folder.images for folder in folders if folder.name == missing[0].split("/")[0])
        raise UserError(f"{images} holds no preprocessed volume of {', '.join(missing)}; name others with -i, or run "
                        f"nnssl_plan_and_preprocess for that dataset")  # fmt: skip
    return Cases.of(folders, [[label.split("/")[1] for label in labels if label in cases] for cases in there])


def _guard(content: dict[str, Any], folders: Sequence[VolumeFolder], allow: bool) -> None:
    """Compare datasets that the run was not trained on with it."""
    own = {case.split("/")[0] for case in (*content.get("val_cases", []), *content.get("train_cases", []))}
    given = Images.of_pretraining(
        content["plans"], content["configuration"], content["dataset_json"], content.get("orientation")
    )
    for folder in folders:
        if folder.name not in own | {content["plans"]["dataset_name"]}:
            channels = names_of_channels(read_dataset_json(folder.images.parent))
            warn_of_images(given, Images(folder.name, channels, spacing=folder.spacing), allow, by_scheme=True)


def _full_name(case: str, known: Sequence[str], dataset: str) -> str:
    return next((label for label in known if label.split("/")[1] == case), f"{dataset}/{case}")


def _folders(preprocessed: Path, name: str, content: dict[str, Any]) -> list[VolumeFolder]:
    """The volumes of a dataset, by its own plans of the run's name where it has some."""
    plans = content["plans"]
    own = preprocessed / check_name(name, "dataset", "-i") / f"{plans['plans_name']}.json"
    if name != plans["dataset_name"] and own.is_file():
        plans = read_json(own, PlansFile)
        if content["configuration"] not in plans["configurations"]:
            raise UserError(f"{own} has no configuration {content['configuration']}, which the run was made with; name "
                            f"cases of {content['plans']['dataset_name']} with -i")  # fmt: skip
    return volume_folders(preprocessed, name, plans, content["configuration"])

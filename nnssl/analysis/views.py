"""What a run's method sees of chosen cases and makes of them, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.runs import Run, open_run
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.figures import check_output, save_numbers
from nnssl.core.files import read_json
from nnssl.core.names import check_name
from nnssl.core.plans_schema import PlansFile
from nnssl.data.folders import require_folders
from nnssl.data.guard import Images, names_of_channels, warn_of_images
from nnssl.data.loader import Cases, SampleDataset
from nnssl.data.plan_and_preprocess import volume_folders
from nnssl.data.raw import read_dataset_json
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.base import Batch, Method, Sample, to_device
from nnssl.methods.options import from_plain
from nnssl.methods.panel import Panel
from nnssl.methods.registry import IMPORTED, get_method, method_names
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.overviews import Overview, overviews
from nnssl.pretraining.pictures import draw_panels, name_cases
from nnssl.pretraining.setup import Setup
from nnssl.pretraining.weights import check_state

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


def visualize_views(
    model: str | Path,
    output: str | Path,
    cases: Sequence[str] = (),
    step: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Drawn:
    """Draw the views that a run's method makes of cases, as `views.png` does at the first step of a training.

    Args:
        model: run folder or checkpoint of any method; or `random:RUN`.
        output: the PNG; its numbers (.json) are written beside it.
        cases: names of preprocessed volumes, such as case_001 or Dataset500_Thorax/case_001; none for the run's first
            ones, held-out ones before the others.
        step: number of the step whose random crops are drawn.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: take cases of a dataset of another modality (`nnssl.data.guard`).

    Raises:
        UserError: there is no such checkpoint or volume, or a dataset is of another modality.
    """
    file = check_output(output)
    run = open_run(model)
    setup, method, batch, names = _prepare(run, cases, step, device, allow_other_intensities)
    on_cpu = {key: value.cpu() for key, value in batch.items()}
    panels = type(method).panels(on_cpu, method.config)
    where = overviews(setup, type(method), on_cpu, names, panels)
    return _draw(Drawn(names, panels, {}), f"{run.title}: views of step {step}", run.title, file, where)


def visualize_reconstruction(
    model: str | Path,
    output: str | Path,
    cases: Sequence[str] = (),
    step: int = 0,
    device: str | None = None,
    allow_other_intensities: bool = False,
) -> Drawn:
    """Draw what a run's network makes of masked crops, as `reconstruction.png` does; its loss is among the numbers.

    Args:
        model: as of `visualize_views`, of a method that reconstructs.
        output: as of `visualize_views`.
        cases: as of `visualize_views`.
        step: number of the step whose random crops and masks are drawn.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        allow_other_intensities: as of `visualize_views`.

    Raises:
        UserError: as of `visualize_views`; or the method reconstructs nothing.
    """
    file = check_output(output)
    run = open_run(model)
    name = run.content["method"]
    if get_method(name).reconstruction is Method.reconstruction:
        able = " or ".join(n for n in method_names() if get_method(n).reconstruction is not Method.reconstruction)
        raise UserError(f"{name} reconstructs nothing; give a run of {able}, or draw its views")
    _, method, batch, names = _prepare(run, cases, step, device, allow_other_intensities)
    with torch.no_grad():
        panels = method.reconstruction(batch)
        result = method.step(batch)
    numbers = {name: float(value) for name, value in {"loss": result.loss, **result.terms}.items()}
    heading = f"{run.title}: after epoch {run.content.get('epoch', 0)}"
    return _draw(Drawn(names, panels, numbers), heading, run.title, file)


def _draw(drawn: Drawn, heading: str, method: str, file: Path, where: Sequence[Overview] = ()) -> Drawn:
    draw_panels(drawn.panels, file, f"{heading}\n{name_cases(drawn.cases, len(drawn.panels))}", where)
    pictures = [
        [{"title": p.title, "points": list(p.points), "boxes": list(p.boxes), "shape": p.image.shape} for p in row]
        for row in drawn.panels
    ]
    save_numbers({"method": method, "cases": drawn.cases, **drawn.numbers, "pictures": pictures}, file)
    return drawn


def _prepare(
    run: Run, cases: Sequence[str], step: int, device: str | None, allow: bool
) -> tuple[Setup, Method, Batch, list[str]]:
    """The run with these cases, its method, an augmented batch of them, and their names."""
    device = resolve_device(device)
    if step < 0:
        raise UserError(f"--step must be at least 0, not {step}")
    content = run.content
    if content["method"] == IMPORTED:
        raise UserError(f"{run.checkpoint} holds weights from elsewhere, and no method that makes views; draw its "
                        f"features with nnssl_visualize pca or similarity")  # fmt: skip
    method_class = get_method(content["method"])
    volumes, asked = _volumes(content, cases, run.checkpoint)
    _guard(content, volumes.folders, allow)
    config = replace(from_plain(method_class.config_class, content["config"]), batch_size=len(volumes))
    setup = Setup(content["method"], config, content["plans"], content["dataset_json"], {}, content["configuration"],
                  "all", volumes, Cases.of([], []), run.checkpoint.parent, orientation=content.get("orientation"),
                  resolved=resolve_configuration(content["plans"], content["configuration"]))  # fmt: skip
    method = setup.build_method()
    check_state(method, content["method_state"], run.checkpoint)
    method.load_state_dict(content["method_state"])
    method.to(device).eval()
    dataset = SampleDataset(method_class, config, volumes, setup.val, setup.aligner)
    items = [dataset["train", step, position] for position in range(len(volumes))]
    items.sort(key=lambda item: asked.index(item[0]))  # a step draws its cases in a random order
    samples = [_checked(sample) for _, sample in items]
    with torch.no_grad():
        batch = method.augment(to_device(method_class.collate(samples), torch.device(device), method.host_keys))
    return setup, method, batch, [case for case, _ in items]


def _checked(sample: Sample | str) -> Sample:
    """Raise UserError where reading failed, with its sentence."""
    if isinstance(sample, str):
        raise UserError(sample)
    return sample


def _volumes(content: dict[str, Any], asked: Sequence[str], path: Path) -> tuple[Cases, list[str]]:
    """The chosen preprocessed volumes, and their labels in the order of the choice."""
    known = [*content.get("val_cases", []), *content.get("train_cases", [])]  # Dataset/case
    dataset = content["plans"]["dataset_name"]
    labels = [case if "/" in case else _full_name(case, known, dataset) for case in asked] or known[:_DEFAULT]
    if not labels:
        raise UserError(f"{path} does not say which cases it was trained on; name some with -i")
    (preprocessed,) = require_folders("nnUNet_preprocessed")
    names = list(dict.fromkeys(label.split("/")[0] for label in labels))
    folders = [folder for name in names for folder in _folders(preprocessed, name, content)]
    there = [{f"{folder.name}/{case}" for case in folder.cases()} for folder in folders]
    present = set().union(*there)
    if missing := [label for label in labels if label not in present]:
        images = next(folder.images for folder in folders if folder.name == missing[0].split("/")[0])
        some = ", ".join(sorted(present)[:_DEFAULT])
        others = f"others with -i, such as {some}" if some else "others with -i"
        raise UserError(f"{images} holds no preprocessed volume of {', '.join(missing)}; name {others}, or run "
                        f"nnssl_plan_and_preprocess for that dataset")  # fmt: skip
    volumes = Cases.of(folders, [[label.split("/")[1] for label in labels if label in cases] for cases in there])
    return volumes, labels


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
    """The volumes of a dataset, by its own plans of the same name if there are any."""
    plans = content["plans"]
    own = preprocessed / check_name(name, "dataset", "-i") / f"{plans['plans_name']}.json"
    if name != plans["dataset_name"] and own.is_file():
        plans = read_json(own, PlansFile)
        if content["configuration"] not in plans["configurations"]:
            raise UserError(f"{own} has no configuration {content['configuration']}, which the run was made with; name "
                            f"cases of {content['plans']['dataset_name']} with -i")  # fmt: skip
    return volume_folders(preprocessed, name, plans, content["configuration"])

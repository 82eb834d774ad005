"""nnU-Net's prediction with ONNX Runtime in the place of the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.data.pool import quietly
from nnssl.deployment.cases import list_cases, why_left_out
from nnssl.deployment.labels import exporting_labels
from nnssl.deployment.session import OnnxModel, open_model, run, usual_session_device

log = logging.getLogger("nnssl")


class SessionNetwork:
    """Takes the place of the network in `nnUNetPredictor`: the "weights" that it loads for each fold are a session.

    Args:
        session: to use first.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def load_state_dict(self, session: Any) -> None:
        """Use another session from now on."""
        self._session = session

    def to(self, _device: torch.device) -> SessionNetwork:
        """Return itself: the session's provider decides where it computes."""
        return self

    def eval(self) -> SessionNetwork:
        """Return itself: a session only predicts."""
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Map patches (B, C, *patch) to logits (B, num_classes, *patch) on the device of the patches."""
        return torch.from_numpy(run(self._session, x.cpu().numpy())).to(x.device)


def predict_onnx(
    input_folder: str | Path,
    output_folder: str | Path,
    models: Sequence[str | Path],
    step_size: float = 0.5,
    disable_tta: bool = False,
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    num_processes_preprocessing: int = 3,
    num_processes_segmentation_export: int = 3,
    prev_stage_predictions: str | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    device: str | None = None,
    threads: int = 0,
    disable_progress_bar: bool = False,
    not_on_device: bool = False,
    verbose: bool = False,
) -> dict[str, str]:
    """Predict a folder of images as `nnUNetv2_predict_from_modelfolder` does, and write the same files.

    Preprocessing, sliding window, mirroring, resampling and writing are nnU-Net's own functions; classes are resampled
    one after another, see `nnssl.deployment.labels`.

    Args:
        input_folder: images named like case_0000.nii.gz.
        output_folder: for the label maps; made if it is missing.
        models: files of `export_onnx`; several are an ensemble: their logits are averaged, as nnU-Net does with folds.
        step_size: of the sliding window, as a fraction of the patch.
        disable_tta: do not mirror.
        save_probabilities: also write the probabilities of every class.
        continue_prediction: leave out cases that `output_folder` holds already.
        num_processes_preprocessing: processes; 0 works in this one.
        num_processes_segmentation_export: processes for resampling and writing; 0 if and only if the other is 0.
        prev_stage_predictions: folder with the first stage's label maps, for the second stage of a cascade.
        num_parts: number of calls that share the cases.
        part_id: which of them this is, from 0 on.
        device: "cuda" or "cpu", see `open_model`; None: cuda where PyTorch and ONNX Runtime can use a card.
        threads: of the session and of torch; 0 leaves both as they are.
        disable_progress_bar: show no bar.
        not_on_device: sum the logits in main memory instead of on the card.
        verbose: also print what nnU-Net prints.

    Returns:
        The reasons of the cases that were left out, by name; the others are predicted.

    Raises:
        UserError: an argument, a model or an image is missing or wrong, or no image can be used.
    """
    check_step_size(step_size)
    _check_processes(num_parts, part_id, num_processes_preprocessing, num_processes_segmentation_export)
    device = device or usual_session_device()
    opened = open_ensemble([Path(model) for model in models], device, threads)
    cases = list_cases(Path(input_folder), opened[0].description.dataset_json)
    with limited_threads(threads):
        predictor = make_predictor(opened, step_size, disable_tta, device, disable_progress_bar, not_on_device, verbose)
        _check_stage(predictor.configuration_manager.previous_stage_name, prev_stage_predictions, cases,
                     opened[0].description.dataset_json["file_ending"])  # fmt: skip
        chosen = list(cases)[part_id::num_parts]
        done = _predicted(output_folder, chosen, predictor, save_probabilities) if continue_prediction else set()
        todo = {name: cases[name] for name in chosen if name not in done}
        left_out = _left_out(todo, opened[0], prev_stage_predictions)
        chosen = [name for name in chosen if name not in left_out]
        if not chosen:
            if left_out:
                raise UserError(f"no image can be used; the first one: {next(iter(left_out.values()))}")
            return {}
        Path(output_folder).mkdir(parents=True, exist_ok=True)
        images = [cases[name] for name in chosen]
        outputs = [str(Path(output_folder) / name) for name in chosen]
        options: dict[str, Any] = {
            "save_probabilities": save_probabilities,
            "overwrite": not continue_prediction,
            "folder_with_segs_from_prev_stage": prev_stage_predictions,
        }
        with exporting_labels():
            if num_processes_preprocessing == 0:
                predictor.predict_from_files_sequential(images, outputs, **options)
            else:
                predictor.predict_from_files(
                    images,
                    outputs,
                    num_processes_preprocessing=num_processes_preprocessing,
                    num_processes_segmentation_export=num_processes_segmentation_export,
                    **options,
                )
    return left_out


def _predicted(folder: str | Path, names: list[str], predictor: Any, save_probabilities: bool) -> set[str]:
    """Cases that nnU-Net skips when it continues."""
    endings = [predictor.dataset_json["file_ending"], *([".npz"] if save_probabilities else [])]
    return {name for name in names if all((Path(folder) / f"{name}{ending}").is_file() for ending in endings)}


def _left_out(cases: dict[str, list[str]], model: OnnxModel, previous: str | None) -> dict[str, str]:
    """Why cases cannot be predicted, by name; each is logged. nnU-Net would end at the first one."""
    about, found = model.description, {}
    for name, files in cases.items():
        first = None if previous is None else str(Path(previous) / f"{name}{about.dataset_json['file_ending']}")
        reason = why_left_out(files, about.plans, about.configuration, about.dataset_json, first)
        if reason is not None:
            log.warning("%s is left out: %s", name, reason)
            found[name] = reason
    return found


def open_ensemble(files: Sequence[Path], device: str, threads: int) -> list[OnnxModel]:
    """Open several folds of one model.

    Raises:
        UserError: as `open_model`; or they differ in more than the fold.
    """
    opened = [open_model(file, device, threads) for file in files]
    first = opened[0].description
    for file, model in zip(files[1:], opened[1:], strict=True):
        for name in (field.name for field in fields(first) if field.name not in ("fold", "nnssl_version")):
            if getattr(model.description, name) != getattr(first, name):
                raise UserError(f"{files[0]} and {file} differ in their {name}; give folds of one model folder")
    return opened


def make_predictor(
    models: Sequence[OnnxModel],
    step_size: float,
    disable_tta: bool,
    device: str,
    disable_progress_bar: bool = True,
    not_on_device: bool = False,
    verbose: bool = False,
) -> Any:
    """An `nnUNetPredictor` on the sessions of these models; arguments as in `predict_onnx`."""
    with quietly():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        # The logits are summed on the card where torch can use it too.
        on_card = device == "cuda" and torch.cuda.is_available()
        predictor = nnUNetPredictor(
            tile_step_size=step_size, use_mirroring=not disable_tta, perform_everything_on_device=not not_on_device,
            device=torch.device("cuda" if on_card else "cpu"), verbose=verbose, verbose_preprocessing=verbose,
            allow_tqdm=not disable_progress_bar,
        )  # fmt: skip
    description, sessions = models[0].description, [model.session for model in models]
    plans, axes = PlansManager(description.plans), description.mirroring_axes
    network = SessionNetwork(sessions[0])
    predictor.manual_initialization(
        network, plans, plans.get_configuration(description.configuration), sessions, description.dataset_json,
        description.trainer_name, None if axes is None else tuple(axes),
    )  # fmt: skip
    predictor.network = network  # without what nnUNet_compile may have wrapped around it
    return predictor


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Give torch this number of threads inside the context; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_step_size(step_size: float) -> None:
    """Raise UserError if the window would not move, or would skip voxels."""
    if not 0 < step_size <= 1:
        raise UserError(f"-step_size {step_size} must be above 0 and at most 1, such as 0.5")


def _check_processes(num_parts: int, part_id: int, preprocessing: int, export: int) -> None:
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id} of -num_parts {num_parts}: parts are counted from 0 to num_parts - 1")
    if min(preprocessing, export) < 0 or (preprocessing == 0) != (export == 0):
        raise UserError("-npp and -nps must both be at least 1, or both 0 for one process")


def _check_stage(previous: str | None, folder: str | None, cases: dict[str, list[str]], ending: str) -> None:
    if previous is None and folder is not None:
        raise UserError("this model is not the second stage of a cascade; leave out -prev_stage_predictions")
    if previous is None:
        return
    if folder is None:
        raise UserError(f"this model is the second stage of a cascade: give the predictions of {previous} with "
                        f"-prev_stage_predictions FOLDER")  # fmt: skip
    missing = [name for name in cases if not (Path(folder) / f"{name}{ending}").is_file()]
    if missing:
        raise UserError(f"{folder} lacks predictions of {previous} for {', '.join(missing[:5])}")

"""`nnssl.classify_predict`: labels of new images, and where in them the evidence is."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.classification.heads import Floats
from nnssl.classification.heat import draw_heat
from nnssl.classification.model import Classifier, load_classifiers
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.core.names import csv_table
from nnssl.data.folders import check_output_folder
from nnssl.features.body import prepare_with_body
from nnssl.features.cases import find_cases
from nnssl.features.images import ImageReader, PreparedImage

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Args:
        file: the table.
        values: probabilities (K,) of the classes, or (1,) a number, by case.
        left_out: reasons by name of images that cannot be used.
    """

    file: Path
    values: dict[str, Floats]
    left_out: dict[str, str]


def classify_predict(
    images: str | Path,
    output: str | Path,
    model: str | Path,
    heat: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    allow_other_intensities: bool = False,
) -> Predicted:
    """Predict the label of every image.

    Args:
        images: dataset of nnUNet_raw, folder or image, see `nnssl.features.cases.find_cases`.
        output: CSV with a line a case: its prediction, and the probability of every class. The folds of a fine-tuned
            model are averaged.
        model: folder of `nnssl_classify`, that of one of its folds, or a `model.pth`.
        heat: folder for a map of each case, as NIfTI on the voxels of its file and as picture; see
            `nnssl.classification.heat`.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        overwrite: replace the table.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).

    Raises:
        UserError: there is no such model or image, an image is of another modality, or the table exists; before
            anything is computed.
    """
    device = resolve_device(device)
    file = _checked_output(Path(output), overwrite)
    classifiers = load_classifiers(model, device)
    source = classifiers[0].model
    cases = find_cases(images, source.dataset_json)
    reader = ImageReader(source, [case.images for case in cases], allow_other_intensities)
    folder = None if heat is None else _heat_folder(Path(heat))
    values: dict[str, Floats] = {}
    left_out: dict[str, str] = {}
    try:
        for case in cases:
            image = prepare_with_body(case, classifiers[0].model, left_out)
            if image is None or image.body is None:
                continue
            reader.saw(image)
            values[case.name] = _mean(classifiers, image, device)
            if folder is not None:
                draw_heat(classifiers, image, values[case.name], folder, device)
    finally:
        if values:  # what is done is kept
            replace_file(file, _table(classifiers[0], values).encode())
    reader.report()
    if not values:
        raise UserError(f"no image could be used; the first one: {next(iter(left_out.values()), 'none')}")
    log.info(f"{file}: {classifiers[0].target} of {len(values)} cases, by {len(classifiers)} model"
             f"{'s' if len(classifiers) > 1 else ''}")  # fmt: skip
    return Predicted(file, values, left_out)


def _checked_output(file: Path, overwrite: bool) -> Path:
    if file.suffix != ".csv":
        raise UserError(f"-o {file} must end in .csv")
    if file.is_dir() or (file.exists() and not overwrite):
        raise UserError(f"{file} exists; give another name as -o, or add --overwrite")
    parent = file.resolve().parent
    if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{parent} cannot be written to; give another -o")
    return file


def _heat_folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-heat {folder} is a file; give a folder")
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _mean(classifiers: Sequence[Classifier], image: PreparedImage, device: str) -> Floats:
    assert image.body is not None
    found: Floats = np.mean([one.predict(image.values, image.body, device) for one in classifiers], axis=0)
    return found


def _table(classifier: Classifier, values: dict[str, Floats]) -> str:
    classes = classifier.classes
    header = ["case", classifier.target, *(f"p({name})" for name in classes)]
    lines: list[list[Any]] = []
    for case, row in sorted(values.items()):
        said = classes[int(row.argmax())] if classes else f"{row[0]:.6g}"
        lines.append([case, said, *(f"{value:.6g}" for value in row if classes)])
    return csv_table(header, lines)

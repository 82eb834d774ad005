"""Frozen features: vectors of all cases once, then heads for every fold in seconds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.analysis.embed import embed
from nnssl.analysis.files import CaseVectors, read_vectors
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.checkpoints.runs import Run
from nnssl.classification.heads import Examples, fit_linear, predict_neighbours
from nnssl.classification.labels import Target
from nnssl.classification.model import Network, save_classifier
from nnssl.classification.results import CONSTANT, Predictions
from nnssl.classification.splits import Fold
from nnssl.core.errors import UserError
from nnssl.features.model import PretrainedModel, model_of

LINEAR = {"classification": "logistic regression", "regression": "ridge regression"}
NEIGHBOURS = "nearest neighbours"
WITH_RANDOM = ", random weights"

log = logging.getLogger("nnssl")


def vectors_of(
    model: str, images: Path, target: Target, folder: Path, device: str, overwrite: bool, allow: bool
) -> CaseVectors:
    """Vectors (D,) of the cases of a target, as `nnssl_embed` makes them; those in the folder are kept.

    Raises:
        UserError: as `nnssl.embed`; or an image with a value cannot be used.
    """
    made = embed(model, images, folder, device=device, overwrite=overwrite, allow_other_intensities=allow,
                 only=target.cases)  # fmt: skip
    vectors = read_vectors(made.folder / "vectors.npz")
    if missing := [case for case in target.cases if case not in vectors]:
        raise UserError(f"{missing[0]} cannot be used: {made.left_out.get(missing[0], 'it has no vector')}; mend the "
                        f"image, or leave its {target.name} empty")  # fmt: skip
    return vectors


def constant(target: Target, folds: Sequence[Fold]) -> Predictions:
    """What knows nothing of an image: the classes' shares, or the mean of the training cases."""
    found: Predictions = {}
    for fold in folds:
        if target.classes:
            shares = np.bincount(target.values.astype(int), minlength=len(target.classes)) / len(target.cases)
            found |= dict.fromkeys(fold.test, shares)
        else:
            found |= dict.fromkeys(fold.test, np.atleast_1d(target.of(fold.train).mean()))
    return found


def cross_validate(vectors: CaseVectors, target: Target, folds: Sequence[Fold], seed: int) -> dict[str, Predictions]:
    """Predictions of every fold's test cases by a linear head and by nearest neighbours.

    Returns:
        Probabilities (K,), or (1,) a number, by kind of head and case.
    """
    found: dict[str, Predictions] = {LINEAR[target.task]: {}, NEIGHBOURS: {}}
    for fold in folds:
        examples = Examples.of(vectors, target, fold.train)
        tested = np.stack([vectors[case] for case in fold.test])
        for kind, predicted in (
            (LINEAR[target.task], fit_linear(examples, seed).predict(tested)),
            (NEIGHBOURS, predict_neighbours(examples, tested, seed)),
        ):
            found[kind] |= {case: np.atleast_1d(row) for case, row in zip(fold.test, predicted, strict=True)}
    return found


def save_frozen(file: Path, run: Run, model: PretrainedModel, vectors: CaseVectors, target: Target, seed: int) -> None:
    """Fit the linear head to all cases, and write it with the backbone."""
    content: dict[str, Any] = run.content
    network = Network(content, model.backbone.state_dict(), model.levels, model.backbone.finest, None,
                      model.patch_size)  # fmt: skip
    head = fit_linear(Examples.of(vectors, target, target.cases), seed)
    save_classifier(file, network, head, target, "frozen", start_of(run))


def start_of(run: Run) -> str:
    """Name of the weights that a classifier starts from."""
    method = str(run.content["method"])
    return f"{RANDOM}_{method}" if run.is_random else method


def predict_frozen(
    run: Run, images: Path, target: Target, folds: Sequence[Fold], home: Path, device: str, seed: int, overwrite: bool,
    allow: bool,
) -> tuple[dict[str, Predictions], PretrainedModel, CaseVectors]:  # fmt: skip
    """Cross-validated predictions by a run's features, and by those of its network with random weights.

    Args:
        run: opened.
        images: folder of the images.
        target: to predict.
        folds: to test.
        home: where vectors of this dataset are kept, for all targets.
        device: to compute on.
        seed: of the inner folds.
        overwrite: make the vectors anew.
        allow: take images of another modality.
    """
    found = {CONSTANT[target.task]: constant(target, folds)}
    plain, random = str(run.checkpoint), f"{RANDOM}:{run.checkpoint}"
    model = model_of(run).to(device)
    folder = home / f"vectors_{start_of(run)}_{model.fingerprint}"
    vectors = vectors_of(random if run.is_random else plain, images, target, folder, device, overwrite, allow)
    ending = WITH_RANDOM if run.is_random else ""
    found |= {f"{kind}{ending}": rows for kind, rows in cross_validate(vectors, target, folds, seed).items()}
    if not run.is_random:
        log.info("the same network with random weights, to compare")
        folder = home / f"vectors_{RANDOM}_{folder.name.removeprefix('vectors_')}"
        others = vectors_of(random, images, target, folder, device, overwrite, allow)
        found |= {f"{kind}{WITH_RANDOM}": rows for kind, rows in cross_validate(others, target, folds, seed).items()}
    return found, model, vectors

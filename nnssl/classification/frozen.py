"""Frozen features: vectors of all cases once, then heads for every fold in seconds."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.analysis.embed import embed
from nnssl.analysis.files import CaseVectors, read_vectors
from nnssl.checkpoints.pretrained import RANDOM
from nnssl.checkpoints.runs import Run
from nnssl.classification.heads import Examples, fit_linear, predict_neighbours
from nnssl.classification.labels import Target
from nnssl.classification.model import Network, save_classifier
from nnssl.classification.results import Predictions
from nnssl.classification.splits import Fold
from nnssl.core.errors import UserError
from nnssl.features.model import PretrainedModel, model_of

LINEAR = {"classification": "logistic regression", "regression": "ridge regression"}
NEIGHBOURS = "nearest neighbours"
WITH_RANDOM = ", random weights"

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Vectors:
    """The cases of a target as a network sees them.

    Args:
        run: whose network.
        model: that network, frozen.
        of_case: (D,) by case, as `nnssl_embed` makes them.
    """

    run: Run
    model: PretrainedModel
    of_case: CaseVectors


def vectors_of(
    run: Run, images: Path, target: Target, home: Path, device: str, overwrite: bool = False, allow: bool = False
) -> Vectors:
    """Vectors of the cases of a target; those that are there for another target are kept.

    Args:
        run: opened.
        images: folder of the images.
        target: with the cases.
        home: where the folders of vectors of this dataset are.
        device: to compute on.
        overwrite: make them anew.
        allow: take images of another modality.

    Raises:
        UserError: as `nnssl.embed`; or an image with a value cannot be used.
    """
    model = model_of(run).to(device)
    name = f"{RANDOM}:{run.checkpoint}" if run.is_random else run.checkpoint
    if run.is_random and not overwrite and (known := _made_before(home, _fingerprint(run, model), target)) is not None:
        return Vectors(run, model, known)
    made = embed(name, images, home / f"vectors_{start_of(run)}_{_fingerprint(run, model)}", device=device,
                 overwrite=overwrite, allow_other_intensities=allow, only=set(target.cases))  # fmt: skip
    vectors = read_vectors(made.folder / "vectors.npz")
    if missing := [case for case in target.cases if case not in vectors]:
        raise UserError(f"{missing[0]} cannot be used: {made.left_out.get(missing[0], 'it has no vector')}; mend the "
                        f"image, or leave its {target.name} empty")  # fmt: skip
    return Vectors(run, model, vectors)


def _fingerprint(run: Run, model: PretrainedModel) -> str:
    """Of the weights and of the plans: random weights of one network are the same with all plans.

    Those of other methods are the same too, where they use the same levels and patches.
    """
    known = [run.content["plans"], run.content["configuration"], model.fingerprint]
    if run.is_random:
        known += [model.levels, model.strides, model.patch_size]
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def _made_before(home: Path, fingerprint: str, target: Target) -> CaseVectors | None:
    """Vectors by the same random weights, made for any method, if all cases have one."""
    for folder in sorted(home.glob(f"vectors_{RANDOM}_*_{fingerprint}")):
        found = read_vectors(folder / "vectors.npz")
        if all(case in found for case in target.cases):
            return found
    return None


def constant(target: Target, folds: Sequence[Fold]) -> Predictions:
    """What knows nothing of an image: the classes' shares, or the mean of the training cases."""
    found: Predictions = {}
    for fold in folds:
        if target.classes:
            # of all cases: shares of each fold's training cases fall where those of its test cases rise, and would
            # rank the pooled cases the wrong way round
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


def save_frozen(file: Path, vectors: Vectors, target: Target, seed: int) -> None:
    """Fit the linear head to all cases, and write it with the backbone."""
    run, model = vectors.run, vectors.model
    network = Network(run.content, model.backbone.state_dict(), model.levels, model.backbone.finest, None,
                      model.patch_size)  # fmt: skip
    head = fit_linear(Examples.of(vectors.of_case, target, target.cases), seed)
    save_classifier(file, network, head, target, "frozen", start_of(run))


def start_of(run: Run) -> str:
    """Name of the weights that a classifier starts from."""
    method = str(run.content["method"])
    return f"{RANDOM}_{method}" if run.is_random else method

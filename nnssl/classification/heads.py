"""What is fitted to the vectors of cases: a linear head by logistic or ridge regression, and nearest neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.classification.labels import Target
from nnssl.classification.splits import splits

Floats = NDArray[np.float64]
_PENALTIES = tuple(10.0**power for power in range(-5, 1))  # C of the logistic, 1 / alpha of the ridge regression
_FIXED = 1e-2  # where there are too few cases to choose
_NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_INNER_FOLDS = 5


@dataclass(frozen=True)
class LinearHead:
    """Scores that are linear in a vector.

    Args:
        weights: (K, D) of K classes, of zero mean over them; (1, D) of a number.
        bias: (K,).
        is_classes: whether the scores are logits.
    """

    weights: Floats
    bias: Floats
    is_classes: bool

    def scores(self, vectors: NDArray[Any]) -> Floats:
        """(N, K) of vectors (N, D)."""
        found: Floats = np.asarray(vectors, dtype=np.float64) @ self.weights.T + self.bias
        return found

    def predict(self, vectors: NDArray[Any]) -> Floats:
        """(N, K) probabilities, or (N,) numbers."""
        scores = self.scores(vectors)
        return softmax(scores) if self.is_classes else scores[:, 0]


def softmax(scores: Floats) -> Floats:
    """Probabilities of logits (N, K)."""
    grown = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(grown / grown.sum(1, keepdims=True))


@dataclass(frozen=True)
class Examples:
    """Cases to fit a head to.

    Args:
        vectors: (N, D).
        target: of the same N cases, in their order.
    """

    vectors: NDArray[Any]
    target: Target

    @classmethod
    def of(cls, vectors: dict[str, NDArray[Any]], target: Target, cases: Sequence[str]) -> Examples:
        """Chosen cases, of which every class has one."""
        part = Target(target.name, tuple(cases), target.of(cases), target.classes, tuple(target.groups_of(cases)))
        return cls(np.stack([vectors[case] for case in cases]).astype(np.float64), part)


def fit_linear(examples: Examples, seed: int = 0) -> LinearHead:
    """Logistic or ridge regression on standardised features; the penalty is chosen by cross-validation within these.

    Args:
        examples: with two classes at least.
        seed: of the inner folds.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    mean, scale = _standard(examples.vectors)
    rows, target = (examples.vectors - mean) / scale, examples.target
    if target.classes:
        grid = {"C": list(_PENALTIES)}
        fitted = _search(
            LogisticRegression(max_iter=300, tol=1e-3), grid, {"C": _FIXED}, rows, target, "neg_log_loss", seed
        )
        weights, bias = np.asarray(fitted.coef_), np.asarray(fitted.intercept_)
        if len(target.classes) == 2:  # sklearn keeps the difference of both
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        weights, bias = weights - weights.mean(0), bias - bias.mean()
    else:
        grid = {"alpha": [1 / penalty for penalty in _PENALTIES]}
        fitted = _search(Ridge(), grid, {"alpha": 1 / _FIXED}, rows, target, "neg_mean_squared_error", seed)
        weights, bias = np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)
    weights = weights / scale
    return LinearHead(weights, bias - weights @ mean, bool(target.classes))


def predict_neighbours(examples: Examples, vectors: NDArray[Any], seed: int = 0) -> Floats:
    """(M, K) probabilities, or (M,) numbers, by the nearest examples in the cosine of standardised features.

    Their number is chosen by cross-validation within the examples.
    """
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    mean, scale = _standard(examples.vectors)
    rows, target = (examples.vectors - mean) / scale, examples.target
    most = max(1, len(rows) * (_INNER_FOLDS - 1) // (2 * _INNER_FOLDS))
    grid = {"n_neighbors": [number for number in _NEIGHBOURS if number <= most]}
    kind, scoring = (
        (KNeighborsClassifier, "balanced_accuracy")
        if target.classes
        else (KNeighborsRegressor, "neg_mean_squared_error")
    )
    fitted = _search(kind(metric="cosine"), grid, {"n_neighbors": 1}, rows, target, scoring, seed)
    given = (np.asarray(vectors, dtype=np.float64) - mean) / scale
    return np.asarray(fitted.predict_proba(given) if target.classes else fitted.predict(given))


def _standard(vectors: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of every feature; a constant one is left as it is."""
    deviation = vectors.std(0)
    return vectors.mean(0), np.where(deviation > 1e-8 * np.abs(vectors).max(initial=1e-30), deviation, 1.0)


def _search(
    model: Any, grid: dict[str, list[Any]], fixed: dict[str, Any], rows: Floats, target: Target, scoring: str, seed: int
) -> Any:
    """The model, fitted with the best values of a grid; with fixed ones where there are too few cases to choose."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV

    values: Any = target.values.astype(int) if target.classes else target.values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest penalties, which are seldom the best
        inner = _inner_folds(target, seed)
        if inner is None:
            return model.set_params(**fixed).fit(rows, values)
        return GridSearchCV(model, grid, scoring=scoring, cv=inner).fit(rows, values).best_estimator_


def _inner_folds(target: Target, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]] | None:
    """Positions of training and test cases with every class on both sides, groups together; None where impossible."""
    for count in range(_INNER_FOLDS, 1, -1):
        made = splits(target, count, seed)
        if made and all(len(set(target.values[test])) == len(target.classes) or not target.classes for _, test in made):
            return made
    return None

"""Scores of predictions, and their intervals by bootstrap over cases; all of them for many weightings at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 8  # cases, or groups: below it no interval
BINS = 10  # of the confidence
_SAMPLES = 2000
_LEVEL = 95.0  # percent
_AT_A_TIME = 2_000_000  # weights
Floats = NDArray[np.float64]
Scores = dict[str, Floats]  # (B,) by name


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval; None where there are too few cases for one."""

    value: float
    low: float | None = None
    high: float | None = None


def score(predicted: Floats, truth: Floats, groups: Sequence[str], seed: int = 0) -> dict[str, Score]:
    """Scores with bootstrap intervals over cases, or over groups of them (percentiles of 2,000 samples).

    Args:
        predicted: (N, K) probabilities of classes, or (N,) numbers.
        truth: (N,) numbers of the classes, or numbers.
        groups: (N,) of the cases; those of a group are drawn together.
        seed: of the samples.
    """
    return mean_score([predicted], truth, groups, seed=seed)


def mean_score(
    models: Sequence[Floats], truth: Floats, groups: Sequence[str], less: Sequence[Floats] = (), seed: int = 0
) -> dict[str, Score]:
    """Mean scores of several models of the same cases, with intervals as of `score`.

    Args:
        models: (N, K) or (N,) predictions of each, such as those of several seeds.
        truth: as of `score`.
        groups: as of `score`.
        less: predictions of other models, whose mean scores are subtracted.
        seed: of the samples.
    """
    names, of_case = np.unique(np.asarray(groups), return_inverse=True)

    def of(weights: Floats) -> Scores:
        found, others = (
            [(_classes if rows.ndim == 2 else _numbers)(rows, truth, weights) for rows in part]
            for part in (models, less)
        )
        means = {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}
        return {name: value - np.mean([one[name] for one in others], axis=0) if others else value
                for name, value in means.items()}  # fmt: skip

    values = {name: float(found[0]) for name, found in of(np.ones((1, len(truth)))).items()}
    if len(names) < FEWEST:
        return {name: Score(value) for name, value in values.items()}
    drawn = _bootstrap(of, of_case, len(names), seed)
    scores = {}
    for name, value in values.items():
        known = drawn[name][np.isfinite(drawn[name])]
        low, high = np.percentile(known, [50 - _LEVEL / 2, 50 + _LEVEL / 2]) if len(known) else (np.nan, np.nan)
        scores[name] = Score(value, float(low), float(high)) if len(known) else Score(value)
    return scores


def _bootstrap(of: Callable[[Floats], Scores], of_case: NDArray[np.int64], count: int, seed: int) -> Scores:
    rng, parts, left = np.random.default_rng(seed), [], _SAMPLES
    while left:
        rows = min(left, max(1, _AT_A_TIME // len(of_case)))
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=rows).astype(np.float64)
        parts.append(of(drawn[:, of_case]))
        left -= rows
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def confusion(predicted: Floats, truth: Floats) -> NDArray[np.int64]:
    """(K, K) cases by their class and by the predicted one, from probabilities (N, K)."""
    classes = predicted.shape[1]
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (truth.astype(int), predicted.argmax(1)), 1)
    return table


@dataclass(frozen=True)
class Reliability:
    """Of the cases of each bin of confidence that has any: mean confidence, share of correct ones, and number."""

    confidence: Floats
    correct: Floats
    count: NDArray[np.int64]


def reliability(predicted: Floats, truth: Floats) -> Reliability:
    """Calibration of the predicted class, in ten bins of its probability from 0 to 1."""
    confidence, correct, place = _confidence(predicted, truth)
    count = np.bincount(place, minlength=BINS)
    some = count > 0
    means = [np.bincount(place, values, BINS)[some] / count[some] for values in (confidence, correct)]
    return Reliability(means[0], means[1], count[some])


def roc_curve(score_of_class: Floats, is_class: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """False and true positive rates from (0, 0) to (1, 1), one point a different score (N,)."""
    hits, misses = _ranked(score_of_class, is_class, np.ones((1, len(is_class))))
    return misses[0] / max(misses[0, -1], 1e-12), hits[0] / max(hits[0, -1], 1e-12)


def _classes(predicted: Floats, truth: Floats, weights: Floats) -> Scores:
    """Scores of probabilities (N, K) for weights (B, N); more than two classes count one against the rest, alike."""
    truth, total = truth.astype(int), weights.sum(1)
    right = predicted.argmax(1) == truth
    recalls, areas, precisions = [], [], []
    positive = [1] if predicted.shape[1] == 2 else range(predicted.shape[1])
    for number in range(predicted.shape[1]):
        of_class = weights[:, truth == number].sum(1)
        recalls.append(_ratio(weights[:, right & (truth == number)].sum(1), of_class))
    for number in positive:
        hits, misses = _ranked(predicted[:, number], truth == number, weights)
        areas.append(_ratio((np.diff(misses) * (hits[:, 1:] + hits[:, :-1]) / 2).sum(1), hits[:, -1] * misses[:, -1]))
        precision = hits[:, 1:] / np.maximum(hits[:, 1:] + misses[:, 1:], 1e-12)
        precisions.append(_ratio((np.diff(hits) * precision).sum(1), hits[:, -1]))
    return {
        "accuracy": _ratio(weights[:, right].sum(1), total),
        "balanced_accuracy": _mean(recalls),
        "auroc": _mean(areas),
        "average_precision": _mean(precisions),
        "calibration_error": _calibration_error(predicted, truth, weights),
    }


def _numbers(predicted: Floats, truth: Floats, weights: Floats) -> Scores:
    total, shift = weights.sum(1), truth.mean()  # R2 does not change, and large numbers such as years keep their digits
    predicted, truth = predicted - shift, truth - shift
    mean = weights @ truth / total
    residual = weights @ (predicted - truth) ** 2
    spread = weights @ truth**2 - total * mean**2
    return {
        "mae": weights @ np.abs(predicted - truth) / total,
        "r2": 1 - _ratio(residual, np.where(spread > 1e-12 * (weights @ truth**2), spread, 0)),
    }


def _calibration_error(predicted: Floats, truth: NDArray[Any], weights: Floats) -> Floats:
    """Expected calibration error: mean distance of confidence and accuracy over the bins (Naeini et al., AAAI 2015)."""
    confidence, correct, place = _confidence(predicted, truth)
    gaps = [np.abs(weights[:, place == b] @ (confidence - correct)[place == b]) for b in np.unique(place)]
    error: Floats = np.sum(gaps, axis=0) / weights.sum(1)
    return error


def _confidence(predicted: Floats, truth: NDArray[Any]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Of every case: probability of the predicted class, whether it is right, and its bin."""
    confidence = predicted.max(1)
    correct = (predicted.argmax(1) == truth).astype(np.float64)
    return confidence, correct, np.clip((confidence * BINS).astype(int), 0, BINS - 1)


def _ranked(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weights of hits and of false alarms (B, T + 1) above each of the T different scores, from 0 to all."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of each score
    hits, misses = (
        np.pad(np.cumsum(weights[:, order] * chosen[order], axis=1)[:, last], ((0, 0), (1, 0)))
        for chosen in (is_class, ~is_class)
    )
    return hits, misses


def _ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean(columns: Sequence[Floats]) -> Floats:
    """Mean over classes; those that a sample lacks do not count."""
    stacked = np.stack(columns)
    known = np.isfinite(stacked)
    return _ratio(np.where(known, stacked, 0).sum(0), known.sum(0).astype(np.float64))

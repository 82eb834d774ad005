from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from nnssl.classification.scores import _classes, _numbers, confusion, mean_score, reliability, roc_curve, score


def _example(classes: int, cases: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    truth = np.arange(cases) % classes
    logits = rng.normal(size=(cases, classes)) + 1.5 * np.eye(classes)[truth]
    grown = np.exp(np.round(logits))  # ties
    return grown / grown.sum(1, keepdims=True), truth.astype(float)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes__equal_those_of_sklearn_with_weights(classes: int) -> None:
    predicted, truth = _example(classes)
    weights = np.random.default_rng(0).integers(0, 3, size=(3, len(truth))).astype(float)
    found = _classes(predicted, truth, weights)
    for row, weight in enumerate(weights):
        kept = weight > 0
        p, t, w = predicted[kept], truth[kept].astype(int), weight[kept]
        chosen = p[:, 1] if classes == 2 else p
        area = metrics.roc_auc_score(t, chosen, sample_weight=w, multi_class="ovr") if classes == 2 else np.mean(
            [metrics.roc_auc_score(t == k, p[:, k], sample_weight=w) for k in range(classes)])  # fmt: skip
        precision = np.mean([metrics.average_precision_score(t == k, p[:, k], sample_weight=w)
                             for k in ([1] if classes == 2 else range(classes))])  # fmt: skip
        assert found["accuracy"][row] == pytest.approx(metrics.accuracy_score(t, p.argmax(1), sample_weight=w))
        balanced = metrics.balanced_accuracy_score(t, p.argmax(1), sample_weight=w)
        assert found["balanced_accuracy"][row] == pytest.approx(balanced)
        assert found["auroc"][row] == pytest.approx(area)
        assert found["average_precision"][row] == pytest.approx(precision)
    assert confusion(predicted, truth).tolist() == metrics.confusion_matrix(truth, predicted.argmax(1)).tolist()


def test_numbers__equal_those_of_sklearn_with_weights() -> None:
    rng = np.random.default_rng(1)
    truth, weights = rng.normal(5, 2, 40), rng.integers(0, 3, size=(2, 40)).astype(float)
    predicted = truth + rng.normal(size=40)
    found = _numbers(predicted, truth, weights)
    for row, w in enumerate(weights):
        assert found["mae"][row] == pytest.approx(metrics.mean_absolute_error(truth, predicted, sample_weight=w))
        assert found["r2"][row] == pytest.approx(metrics.r2_score(truth, predicted, sample_weight=w))


def test_calibration__error_is_the_mean_gap_of_the_bins() -> None:
    predicted = np.array([[0.1, 0.9]] * 10 + [[0.35, 0.65]] * 10)
    truth = np.array([1.0] * 6 + [0.0] * 4 + [1.0] * 7 + [0.0] * 3)
    found = reliability(predicted, truth)
    assert found.confidence == pytest.approx([0.65, 0.9]) and found.correct == pytest.approx([0.7, 0.6])
    assert score(predicted, truth, list("abcdefghijklmnopqrst"))["calibration_error"].value == pytest.approx(0.175)


def test_roc_curve__goes_from_corner_to_corner() -> None:
    false, true = roc_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert false.tolist() == [0, 0, 0.5, 1] and true.tolist() == [0, 0.5, 1, 1]


def test_score__intervals_cover_and_need_eight_cases() -> None:
    predicted, truth = _example(2)
    one = score(predicted, truth, [str(i) for i in range(60)])["auroc"]
    assert one.low is not None and one.high is not None and one.low < one.value < one.high
    twice = score(predicted, truth, [str(i // 6) for i in range(60)])["accuracy"]  # 10 groups
    alone = score(predicted, truth, [str(i) for i in range(60)])["accuracy"]
    assert (twice.low, twice.high) != (alone.low, alone.high) and twice.value == alone.value
    assert score(predicted[:7], truth[:7], list("abcdefg"))["accuracy"].low is None
    assert score(predicted, truth, ["a"] * 60)["accuracy"].high is None


def test_score__a_class_that_no_test_case_has() -> None:
    found = score(np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([1.0, 1.0]), ["a", "b"])
    assert np.isnan(found["auroc"].value) and found["balanced_accuracy"].value == 0.5


def test_numbers__far_from_zero_and_all_alike() -> None:
    truth = 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    found = _numbers(truth + np.array([0.5, -0.5, 0.5, -0.5]), truth, np.ones((1, 4)))
    assert found["r2"][0] == pytest.approx(1 - 1 / 5) and found["mae"][0] == pytest.approx(0.5)
    assert np.isnan(_numbers(truth, np.full(4, 0.1), np.ones((1, 4)))["r2"][0])


def test_mean_score__of_seeds_and_of_their_differences() -> None:
    predicted, truth = _example(2)
    groups = [str(number) for number in range(len(truth))]
    chance = np.full_like(predicted, 0.5)
    each = [score(rows, truth, groups)["auroc"] for rows in (predicted, chance)]
    found = mean_score([predicted, chance], truth, groups)["auroc"]
    assert found.value == pytest.approx((each[0].value + 0.5) / 2)
    assert found.low == pytest.approx((each[0].low + 0.5) / 2)  # type: ignore[operator]
    less = mean_score([predicted], truth, groups, [predicted, chance])["auroc"]
    assert less.value == pytest.approx((each[0].value - 0.5) / 2)
    same = mean_score([predicted], truth, groups, [predicted])["auroc"]
    assert (same.value, same.low, same.high) == (0, 0, 0)

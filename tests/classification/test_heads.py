from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from nnssl.classification.heads import Examples, _inner_folds, fit_linear, predict_neighbours
from tests.classification.data import target_of


def _examples(classes: int, cases: int = 48, groups: bool = False) -> Examples:
    rng = np.random.default_rng(0)
    truth = np.arange(cases) % max(classes, 1) if classes else rng.normal(size=cases)
    vectors = rng.normal(size=(cases, 6)) * [1, 5, 0, 1, 1, 1]
    vectors[:, 1] += 20 * (truth if classes <= 2 else truth == 1)
    vectors[:, 3] += 4 * (truth == 2)
    names = [str(i // 2) for i in range(cases)] if groups else ()
    return Examples(vectors, target_of(truth.tolist(), [f"k{i}" for i in range(classes)], names))


@pytest.mark.parametrize("classes", [2, 3])
def test_fit_linear__separates_classes_by_scores_of_zero_mean(classes: int) -> None:
    examples = _examples(classes)
    head = fit_linear(examples)
    predicted = head.predict(examples.vectors)
    assert predicted.shape == (48, classes) and predicted.sum(1) == pytest.approx(1)
    assert (predicted.argmax(1) == examples.target.values).mean() > 0.9
    assert head.weights.sum(0) == pytest.approx(0, abs=1e-9) and head.bias.sum() == pytest.approx(0, abs=1e-9)


def test_fit_linear__is_sklearn_on_standardised_features() -> None:
    examples = _examples(2)
    scale = np.where(examples.vectors.std(0) > 0, examples.vectors.std(0), 1)
    rows = (examples.vectors - examples.vectors.mean(0)) / scale
    fits = [LogisticRegression(C=10.0**p, max_iter=300, tol=1e-3).fit(rows, examples.target.values)
            for p in range(-5, 1)]  # fmt: skip
    predicted = fit_linear(examples).predict(examples.vectors)
    assert any(np.allclose(fit.predict_proba(rows), predicted, atol=1e-8) for fit in fits)
    numbers = _examples(0)
    ridges = [Ridge(alpha=10.0**p).fit(rows, numbers.target.values) for p in range(6)]
    found = fit_linear(Examples(examples.vectors, numbers.target)).predict(examples.vectors)
    assert any(np.allclose(ridge.predict(rows), found) for ridge in ridges)


def test_predict_neighbours__classes_and_numbers() -> None:
    examples = _examples(3)
    predicted = predict_neighbours(examples, examples.vectors[:5])
    assert predicted.shape == (5, 3) and predicted.argmax(1).tolist() == [0, 1, 2, 0, 1]
    numbers = _examples(0)
    assert predict_neighbours(numbers, numbers.vectors[:4]).shape == (4,)


def test_fit_linear__groups_and_too_few_cases_to_choose_a_penalty() -> None:
    assert fit_linear(_examples(2, groups=True)).weights.shape == (2, 6)
    assert np.isfinite(fit_linear(_examples(2, cases=3)).bias).all()
    assert np.isfinite(predict_neighbours(_examples(2, cases=3), np.zeros((1, 6)))).all()


def test_inner_folds__few_numbers_have_them_too_and_groups_stay_together() -> None:
    assert len(_inner_folds(target_of(np.arange(6.0).tolist()), 0) or ()) == 5
    made = _inner_folds(target_of(np.arange(9.0).tolist(), groups=[f"p{i // 3}" for i in range(9)]), 0)
    assert made is not None and all(set(test // 3).isdisjoint(train // 3) for train, test in made)
    assert _inner_folds(target_of([0, 0, 1], ["no", "yes"]), 0) is None

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl.analysis.files import write_vectors
from nnssl.checkpoints.runs import Run
from nnssl.classification.frozen import _fingerprint, _made_before, constant
from nnssl.classification.splits import Fold
from nnssl.core.errors import UserError
from nnssl.features.model import model_of
from tests.classification.data import target_of
from tests.pretrainings import checkpoint_content
from tests.runs import DATASET_JSON, fpn_plans


def test_fingerprint__random_weights_of_other_plans_have_other_vectors(tmp_path: Path) -> None:
    content = checkpoint_content(fpn_plans(), DATASET_JSON)
    model = model_of(Run(tmp_path, content))
    wider = fpn_plans()
    wider["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    found = [_fingerprint(Run(tmp_path, {**content, "plans": plans}), model) for plans in (fpn_plans(), wider)]
    assert found[0] != found[1] and found[0] == _fingerprint(Run(tmp_path, content), model)


def test_made_before__the_same_random_weights_of_another_method(tmp_path: Path) -> None:
    target = target_of([0, 1], ["no", "yes"])
    for name, cases in (("alice_1", 1), ("mae_1", 2), ("voco_2", 2)):
        folder = tmp_path / f"vectors_random_{name}"
        folder.mkdir()
        write_vectors(folder, {case: np.ones(3, np.float32) for case in target.cases[:cases]}, [0, 3], False, 0)
    assert _made_before(tmp_path, "0", target) is None
    found = _made_before(tmp_path, "1", target)
    assert found is not None and sorted(found) == list(target.cases)
    file = tmp_path / "vectors_random_mae_1/vectors.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"vectors.npz is damaged; remove it"):
        _made_before(tmp_path, "1", target)


def test_constant__shares_of_all_cases_and_means_of_the_training() -> None:
    target = target_of([0, 0, 0, 1], ["no", "yes"])
    folds = [Fold(0, ("c00", "c03"), ("c01",)), Fold(1, ("c01",), ("c00", "c03"))]
    assert {tuple(row) for row in constant(target, folds).values()} == {(0.75, 0.25)}
    found = constant(target_of([1.0, 2.0, 3.0, 6.0]), folds)
    assert found["c01"] == pytest.approx([3.5]) and np.shape(found["c00"]) == (1,)

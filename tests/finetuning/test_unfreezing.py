from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.finetuning.unfreezing import vox2vec_unfreezing_rate

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "vox2vec.json").read_text())


def test_vox2vec_unfreezing_rate__as_the_paper_intends() -> None:
    vector = REFERENCE["finetune_backbone_lr"]
    rates = [vox2vec_unfreezing_rate(e) for e in vector["epochs_of_300_batches"]]
    assert rates == pytest.approx(vector["intended"], abs=1e-12)

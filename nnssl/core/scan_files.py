"""What files of classifications must hold that other commands read. Unknown keys stay."""

from __future__ import annotations

from pydantic import BaseModel, StrictStr

from nnssl.core.schemas import CaseName, DatasetName, Number, Text


class _Value(BaseModel):
    value: Number | None


class _Pooled(BaseModel):
    pooled: dict[str, _Value]


class ClassificationResults(BaseModel):
    """`results.json` of `nnssl_classify`."""

    predictions: dict[str, _Pooled]


class ScanQuestion(BaseModel):
    """`question.json` of `nnssl_benchmark -target --finetune`."""

    dataset: DatasetName
    target: Text
    labels: dict[str, str | float]
    groups: dict[str, str]
    folds: list[dict[str, list[CaseName]]]
    options: list[StrictStr]

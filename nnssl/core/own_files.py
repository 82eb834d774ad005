"""What the files of this package must hold: checkpoints, records, ONNX metadata. Unknown keys stay.

Keys that earlier versions did not write are optional.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    RootModel,
    StrictStr,
    ValidationInfo,
    field_validator,
)

from nnssl.core.names import shown, why_not_a_name
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import (
    Anything,
    AtLeastOne,
    CaseName,
    ConfigurationName,
    Count,
    DatasetFile,
    DatasetName,
    Fold,
    ImagesFile,
    Number,
    Origin,
    Text,
    TrainerName,
)


def _tensors(state: Any) -> Any:
    from torch import Tensor

    if not isinstance(state, dict) or not state:
        raise ValueError("must hold the tensors of a network")
    wrong = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"must hold tensors only, and {str(wrong[0])[:80]!r} is none")
    return state


def _of_the_plans(name: Any, info: ValidationInfo) -> Any:
    plans = info.data.get("plans")
    if plans is not None and name not in plans.configurations:
        raise ValueError(f"is none of the plans' ({', '.join(map(str, plans.configurations))})")
    return name


def _of_datasets(cases: list[str]) -> list[str]:
    for case in cases:
        dataset, sign, name = case.partition("/")
        if not sign or why_not_a_name(dataset, "dataset") or why_not_a_name(name, "case"):
            raise ValueError(f"must name cases like Dataset500_Thorax/case_1, not like {shown(case)}")
    return cases


Cases = Annotated[list[StrictStr], AfterValidator(_of_datasets)]


class CheckpointFile(BaseModel):
    """Entries of a checkpoint of `nnssl_pretrain`."""

    method: Text
    method_state: Annotated[Any, BeforeValidator(_tensors)]
    config: Anything
    levels: Literal["encoder", "decoder"] | None = None  # of weights from elsewhere; else those of the method
    plans: PlansFile
    configuration: ConfigurationName
    dataset_json: ImagesFile
    orientation: StrictStr | None = None
    imported: Origin | None = None
    origin: Origin | None = None
    fingerprint: Anything | None = None
    aligner: StrictStr = ""
    train_cases: Cases = []
    val_cases: Cases = []
    step: Count = 0
    epoch: Count = 0

    _known = field_validator("configuration")(_of_the_plans)


class ResumableFile(CheckpointFile):
    """Entries of a checkpoint that a run can continue from."""

    optimiser_state: Anything
    scaler_state: Anything
    step: Count
    epoch: Count
    train_means: Anything
    embedding_dim: Count
    train_cases: Cases
    val_cases: Cases


class ExchangedFile(BaseModel):
    """Entries of a checkpoint in the exchange format that `nnssl_export` wrote."""

    network_weights: Annotated[Any, BeforeValidator(_tensors)]
    init_args: Anything
    heads: Annotated[Any, BeforeValidator(_tensors)] | None = None


class ExportedFile(BaseModel):
    """`config.json` of a folder of `nnssl_export`: `run` holds the entries of a checkpoint but its tensors."""

    run: Anything


class RunFile(BaseModel):
    """`config.json` of a run."""

    method: Text
    configuration: Text
    plans: Text
    fold: Text
    options: Anything
    warnings: list[StrictStr] = []


class EmbeddingFile(BaseModel):
    """`embedding.json` in the output folder of `nnssl_embed`."""

    what: Literal["case", "dense"]
    format: Text
    method: Text
    weights: Text
    cases: list[StrictStr] = []


class ClassificationFile(BaseModel):
    """`classification.json` in the output folder of `nnssl_classify`."""

    dataset: DatasetName
    target: Text
    task: Literal["classification", "regression"]
    classes: list[StrictStr]
    way: Literal["frozen", "finetuned"]
    start: Text
    weights: Text | None = None
    seed: Count = 0


def _matrix(values: Any) -> Any:
    from torch import Tensor

    if not isinstance(values, Tensor) or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise ValueError("must be a tensor of finite numbers")
    return values


class ClassifierFile(BaseModel):
    """Entry `classifier` of a model of `nnssl_classify`."""

    target: Text
    classes: list[StrictStr]
    way: Literal["frozen", "finetuned"]
    start: Text
    levels: Literal["encoder", "decoder"]
    finest: Count
    level: Count | None
    patch_size: Annotated[list[AtLeastOne], Field(min_length=3, max_length=3)]
    weights: Annotated[Any, BeforeValidator(_matrix)]
    bias: Annotated[Any, BeforeValidator(_matrix)]


class TransferFile(BaseModel):
    """`nnssl_transfer.json` beside a training."""

    checkpoint: Text


class _FoldOfBenchmark(BaseModel):
    fold: Count
    cases: AtLeastOne
    seed: Count
    train: list[CaseName]


class _MethodOfBenchmark(BaseModel):
    trainer: TrainerName
    plans: Text
    checkpoint: StrictStr | None = None
    variables: dict[StrictStr, StrictStr] = {}


class BenchmarkFile(BaseModel):
    """`splits.json` of a benchmark."""

    dataset: DatasetName
    configuration: ConfigurationName
    choice: StrictStr | None = None
    test: list[CaseName]
    training: list[CaseName]
    folds: list[_FoldOfBenchmark] = []
    methods: dict[StrictStr, _MethodOfBenchmark] = {}


class EncodedFile(BaseModel):
    """Beside the encodings of a volume."""

    size: Annotated[list[AtLeastOne], Field(min_length=3, max_length=3)]
    strides: dict[StrictStr, Annotated[list[AtLeastOne], Field(min_length=3, max_length=3)]]
    lengths: list[StrictStr] = []
    image_bytes: Count


class _Scored(BaseModel):
    dice: Number | None
    nsd: Number | None
    reference_voxels: Count
    predicted_voxels: Count


class EvaluationFile(BaseModel):
    """`nnssl_evaluation.json`."""

    tolerance_mm: dict[StrictStr, Number]
    structures: dict[StrictStr, Any]
    absent: Literal["flare", "exclude"]
    cases: dict[StrictStr, dict[StrictStr, _Scored]]


class DemoFile(BaseModel):
    """`demo.json`."""

    settings: dict[StrictStr, StrictStr]
    seconds: dict[StrictStr, Annotated[Number, Field(ge=0)]]
    finished: list[StrictStr]


class _Orientations(BaseModel):
    counts: dict[StrictStr, Count] = {}
    majority: StrictStr | None
    different: dict[StrictStr, StrictStr]


class ReportFile(BaseModel):
    """`<plans>_left_out.json` of a preprocessed dataset."""

    left_out: dict[StrictStr, StrictStr]
    orientation: _Orientations


class SettingsFile(BaseModel):
    """`settings.json`: what volumes were made with."""

    spacing: list[Number] | None = None
    transpose_forward: list[Count] | None = None


class WithdrawnFile(RootModel[dict[StrictStr, list[StrictStr]]]):
    """Cases whose raw files are gone, by the folder that they were in."""


class EpochRow(BaseModel):
    """A line of `metrics.jsonl`."""

    epoch: AtLeastOne
    step: Count
    loss: Number
    samples_per_second: Number


class OnnxFile(BaseModel):
    """What the metadata of an ONNX file hold."""

    plans: PlansFile
    dataset_json: DatasetFile
    configuration: ConfigurationName
    fold: Fold
    trainer_name: TrainerName
    mirroring_axes: list[Count] | None
    nnssl_version: Text

    _known = field_validator("configuration")(_of_the_plans)


class _MetricsOfCase(BaseModel):
    prediction_file: Text
    metrics: dict[StrictStr, dict[StrictStr, Any]] = {}


class SummaryFile(BaseModel):
    """`summary.json` of nnU-Net's evaluation."""

    with_nan: ClassVar[bool] = True
    metric_per_case: list[_MetricsOfCase]
    mean: dict[StrictStr, dict[StrictStr, Any]] = {}

"""What nnU-Net's JSON files must hold. The models only check: content stays unchanged, also unknown keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    RootModel,
    StrictStr,
    ValidationInfo,
    field_validator,
)
from typing_extensions import NotRequired, TypedDict

from nnssl.core import found_by_nnunet
from nnssl.core.names import Kind, shown, why_not_a_name

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
AtLeastOne = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
_LARGEST = 1e300
Text = Annotated[StrictStr, Field(min_length=1)]
Anything = dict[StrictStr, Any]

_OLD_FORMAT = ("is that of nnU-Net v1 (numbers with their names); convert the dataset with "
               "nnUNetv2_convert_old_nnUNet_dataset FOLDER DatasetXXX_NAME (one of the Medical Segmentation Decathlon: "
               "nnUNetv2_convert_MSD_dataset -i FOLDER)")  # fmt: skip


def _named(kind: Kind) -> BeforeValidator:
    def check(name: Any) -> Any:
        if (reason := why_not_a_name(name, kind)) is not None:
            raise ValueError(reason)
        return name

    return BeforeValidator(check)


CaseName = Annotated[Any, _named("case")]
DatasetName = Annotated[Any, _named("dataset")]
PlansName = Annotated[Any, _named("plans")]
ConfigurationName = Annotated[Any, _named("configuration")]
DataIdentifier = Annotated[Any, _named("data_identifier")]
Fold = Annotated[Any, _named("fold"), BeforeValidator(lambda fold: fold if isinstance(fold, bool) else str(fold))]
TrainerName = Annotated[Any, _named("trainer")]


def found(kind: found_by_nnunet.Kind) -> AfterValidator:
    """Check of a name that nnU-Net looks up."""

    def check(name: str) -> str:
        if name != "None" and (reason := found_by_nnunet.why_not_found(name, kind)) is not None:
            raise ValueError(reason)
        return name

    return AfterValidator(check)


Reader = Annotated[Text, found("reader")]
Resampling = Annotated[Text, found("resampling function")]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _label(value: Any) -> Any:
    if not _is_whole(value) and not (isinstance(value, (list, tuple)) and value and all(map(_is_whole, value))):
        raise ValueError("must be a whole number of at least 0, or a list of them for a region")
    return value


def _not_of_old_format(labels: Any) -> Any:
    if (
        isinstance(labels, dict)
        and labels
        and all(isinstance(v, str) and str(k).isdecimal() for k, v in labels.items())
    ):
        raise ValueError(_OLD_FORMAT)
    return labels


def raise_faults(faults: Iterable[str]) -> None:
    """Raise ValueError with all faults, if there are any."""
    if found := "; ".join(faults):
        raise ValueError(found)


def _labels(labels: dict[str, Any]) -> dict[str, Any]:
    """Check the labels together, as nnU-Net's LabelManager and its check of integrity do."""
    raise_faults(_faults_of_labels(labels))
    return labels


def _faults_of_labels(labels: dict[str, Any]) -> Iterable[str]:
    if labels.get("background") != 0:
        yield 'must name the background among them, as in {"background": 0}'
    ignored = labels.get("ignore")
    values = {v for name, value in labels.items() if name != "ignore" for v in _values(value)}
    if values != set(range(len(values))):
        listed = ", ".join(map(str, sorted(values)[:10]))
        yield f"must use the values 0, 1, 2 and so on without a gap ({listed} here)"
    if ignored is not None and ignored != max(values, default=0) + 1:
        yield f"must give ignore the highest value, {max(values, default=0) + 1}"
    seen: dict[tuple[int, ...], str] = {}
    for name, value in labels.items():
        if (key := tuple(sorted(set(_values(value))))) in seen:
            yield f"must give {shown(name)} another value than {shown(seen[key])}"
        seen.setdefault(key, name)


def _values(label: int | list[int]) -> tuple[int, ...]:
    return tuple(label) if isinstance(label, (list, tuple)) else (label,)


def _channels(names: dict[str, str]) -> dict[str, str]:
    if list(names) != [str(i) for i in range(len(names))] or not names:
        raise ValueError('must number the channels in order, as in {"0": "CT", "1": "PET"}')
    return names


def _ending(ending: str) -> str:
    if not ending.startswith(".") or ending == "." or any(sign in "/\\" or not sign.isprintable() for sign in ending):
        raise ValueError('must begin with a dot and name a kind of file, as in ".nii.gz"')
    return ending


class _CaseFiles(TypedDict):  # three times as fast as a model: there may be a hundred thousand
    images: Annotated[list[Text], Field(min_length=1)]
    label: NotRequired[StrictStr | None]


class ImagesFile(BaseModel):
    """The part of `dataset.json` that says what images are; `modality` may stand for `channel_names`."""

    channel_names: Annotated[
        dict[StrictStr, StrictStr],
        AfterValidator(_channels),
        Field(validation_alias=AliasChoices("channel_names", "modality")),
    ]
    file_ending: Annotated[StrictStr, AfterValidator(_ending)]


class DatasetFile(ImagesFile):
    """`dataset.json` of nnU-Net v2; `numTraining` may be absent."""

    labels: Annotated[
        dict[StrictStr, Annotated[Any, BeforeValidator(_label)]],
        BeforeValidator(_not_of_old_format),
        AfterValidator(_labels),
    ]
    regions_class_order: list[Count] | None = Field(default=None, validate_default=True)
    overwrite_image_reader_writer: Reader = "None"
    numTraining: Count | None = None
    dataset: dict[CaseName, _CaseFiles] | None = None
    annotated_labels: dict[StrictStr, list[StrictStr]] | None = None

    @field_validator("regions_class_order")
    @classmethod
    def _one_for_each_region(cls, order: list[int] | None, info: ValidationInfo) -> list[int] | None:
        labels: dict[str, Any] = info.data.get("labels", {})
        if not any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values()):
            return order
        regions = [name for name, value in labels.items() if name != "ignore" and set(_values(value)) != {0}]
        if order is None or len(order) != len(regions):
            raise ValueError(f"must list one value for each of the {len(regions)} regions, in the order in which they "
                             f"are drawn")  # fmt: skip
        return order


def _or_nan(value: Any) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > _LARGEST:
        raise ValueError("must be a finite number")
    return value


OrNan = Annotated[Any, BeforeValidator(_or_nan)]


class Intensities(BaseModel):
    """Of one channel, over the foreground; nnU-Net writes NaN without any foreground."""

    mean: OrNan
    std: OrNan
    percentile_00_5: OrNan = float("nan")
    percentile_99_5: OrNan = float("nan")


class Origin(BaseModel):
    """Where weights come from: whose licence and citation they carry."""

    title: StrictStr | None = None
    licence: StrictStr | None = None
    citation: StrictStr | None = None
    url: StrictStr | None = None
    derived: bool = False


class _Split(BaseModel):
    train: list[StrictStr]
    val: list[StrictStr]
    online_val: list[StrictStr] = []


def _of_cases(splits: list[_Split]) -> list[_Split]:
    names = {name for split in splits for name in (*split.train, *split.val, *split.online_val)}
    wrong = [(name, reason) for name in sorted(names) if (reason := why_not_a_name(name, "case")) is not None]
    raise_faults(f"the case {shown(name)} {reason}" for name, reason in wrong[:20])
    return splits


ONLINE = "online_val"  # of a fold: cases for the validation loss, where `val` are test cases


class SplitsFile(RootModel[Annotated[list[_Split], AfterValidator(_of_cases)]]):
    """`splits_final.json`: training and validation cases of each fold."""


class FingerprintFile(BaseModel):
    """`dataset_fingerprint.json`."""

    with_nan: ClassVar[bool] = True
    spacings: Annotated[list[list[Positive]], Field(min_length=1)]
    shapes_after_crop: Annotated[list[list[AtLeastOne]], Field(min_length=1)]
    foreground_intensity_properties_per_channel: Annotated[dict[StrictStr, Intensities], Field(min_length=1)]
    median_relative_size_after_cropping: Positive

"""What nnU-Net plans must hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictStr, ValidationInfo, field_validator

from nnssl.core.names import shown, why_not_a_name
from nnssl.core.schemas import (
    Anything,
    AtLeastOne,
    ConfigurationName,
    Count,
    DataIdentifier,
    DatasetName,
    Intensities,
    Number,
    Origin,
    PlansName,
    Positive,
    Reader,
    Resampling,
    Text,
    found,
    raise_faults,
)

_RESOLVED = ("data_identifier", "batch_size", "patch_size", "spacing", "normalization_schemes")
_MOST_CHANNELS = 1000
_Sizes = Annotated[list[AtLeastOne], Field(min_length=3, max_length=3)]
_OLD_UNET = (
    "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
    "pool_op_kernel_sizes", "conv_kernel_sizes",
)  # fmt: skip


def _axes(axes: list[int]) -> list[int]:
    if sorted(axes) != [0, 1, 2]:
        raise ValueError("must be an order of the axes 0, 1 and 2")
    return axes


def _parts(names: Any) -> Any:
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError('must be a list of parts, such as ["encoder"]')
    return names


class _Architecture(BaseModel):
    network_class_name: Text
    arch_kwargs: Anything
    requires_import: list[StrictStr] | None = Field(default=None, validation_alias="_kw_requires_import")


def _stage(name: Any) -> Any:
    if name is not None and (reason := why_not_a_name(name, "configuration")) is not None:
        raise ValueError(reason)
    return name


PreviousStage = Annotated[Any, AfterValidator(_stage)]


class _Configuration(BaseModel):
    """The entries of one configuration itself; it inherits the others."""

    inherits_from: StrictStr | None = None
    data_identifier: DataIdentifier = None
    preprocessor_name: Annotated[Text, found("preprocessor")] | None = None
    batch_size: AtLeastOne | None = None
    patch_size: Annotated[list[AtLeastOne], Field(min_length=2, max_length=3)] | None = None
    spacing: Annotated[list[Positive], Field(min_length=2, max_length=3)] | None = None
    normalization_schemes: Annotated[list[Annotated[Text, found("normalisation")]], Field(min_length=1)] | None = None
    use_mask_for_norm: list[StrictBool] | None = None
    resampling_fn_data: Resampling | None = None
    resampling_fn_seg: Resampling | None = None
    resampling_fn_probabilities: Resampling | None = None
    resampling_fn_data_kwargs: Anything | None = None
    resampling_fn_seg_kwargs: Anything | None = None
    architecture: _Architecture | None = None
    previous_stage: PreviousStage = None


class _Pretraining(BaseModel):
    """`plans["nnssl"]`: what our trainers start from and how long they train."""

    checkpoint: Text | None = None
    method: Text | None = None
    levels: Literal["encoder", "decoder"] | None = None
    network: Anything | None = None
    teacher: Text | None = None
    unlabelled_share: Annotated[Number, Field(ge=0, lt=1)] | None = None
    num_epochs: AtLeastOne | None = None
    num_iterations_per_epoch: AtLeastOne | None = None
    num_val_iterations_per_epoch: AtLeastOne | None = None
    initial_lr: Positive | None = None
    recipe: Literal["adamw", "sgd", "published"] | None = None
    patience: AtLeastOne | None = None
    freeze: Annotated[Any, AfterValidator(_parts)] | None = None
    freeze_steps: Count | None = None
    origin: Origin | None = None


class PlansFile(BaseModel):
    """nnU-Net plans: of any planner, of a preset that is filled in, or of a version before `architecture`."""

    with_nan: ClassVar[bool] = True
    plans_name: PlansName
    dataset_name: DatasetName
    transpose_forward: Annotated[list[Count], AfterValidator(_axes)] | None = None
    transpose_backward: Annotated[list[Count], AfterValidator(_axes)] | None = None
    image_reader_writer: Reader | None = None
    label_manager: Annotated[Text, found("label manager")] | None = None
    foreground_intensity_properties_per_channel: dict[StrictStr, Intensities]
    nnssl: _Pretraining | None = None
    configurations: dict[ConfigurationName, _Configuration]

    @field_validator("configurations", mode="wrap")
    @classmethod
    def _resolvable(cls, given: Any, check: Callable[[Any], Any], info: ValidationInfo) -> Any:
        check(given)
        raise_faults(_faults_of_configurations(given, info.data.get("foreground_intensity_properties_per_channel")))
        return given


def _faults_of_configurations(given: Mapping[str, Any], intensities: Mapping[str, Any] | None) -> Iterable[str]:
    if not given:
        yield "must hold a configuration"
    for name in given:
        resolved, lost = _resolve(given, name)
        if lost is not None:
            yield f"{name} inherits from {shown(lost)}, which leads nowhere"
        elif gone := [key for key in _RESOLVED if resolved.get(key) is None] + _gone_of_network(resolved):
            yield f"{name} lacks {', '.join(gone)}"
        elif len(resolved["patch_size"]) != len(resolved["spacing"]):
            yield f"{name} has a patch_size of {len(resolved['patch_size'])} axes and a spacing of another number"
        else:
            channels = len(resolved["normalization_schemes"])
            if len(resolved.get("use_mask_for_norm", range(channels))) != channels:
                yield f"{name} has another number of use_mask_for_norm than of normalization_schemes"
            if intensities is not None and not {str(c) for c in range(channels)} <= intensities.keys():
                yield f"{name} normalises {channels} channels, and the intensities are those of fewer"
            elif intensities is not None:
                yield from _faults_of_windows(name, resolved["normalization_schemes"], intensities)


def _faults_of_windows(name: str, schemes: list[str], intensities: Mapping[str, Any]) -> Iterable[str]:
    for channel, scheme in enumerate(schemes):
        known = intensities[str(channel)]
        window = (known.mean, known.std, known.percentile_00_5, known.percentile_99_5)
        if scheme == "CTNormalization" and any(math.isnan(value) for value in window):
            yield f"{name} normalises channel {channel} as CT, and its mean, std and percentiles are not known"


def _gone_of_network(resolved: Mapping[str, Any]) -> list[str]:
    if resolved.get("architecture") is not None:
        return []
    return [k for k in _OLD_UNET if k not in resolved] if "UNet_class_name" in resolved else ["architecture"]


def _resolve(given: Mapping[str, Any], name: str) -> tuple[dict[str, Any], str | None]:
    """A configuration merged with its ancestors; or the name of an ancestor that is missing or met twice."""
    chain: list[str] = []
    at: str | None = name
    while at is not None:
        if at in chain or at not in given:
            return {}, at
        chain.append(at)
        at = given[at].get("inherits_from")
    return {key: value for step in reversed(chain) for key, value in given[step].items()}, None


class ReaderPlans(BaseModel):
    """The part of plans that an evaluation needs."""

    plans_name: PlansName
    image_reader_writer: Reader


class _Described(BaseModel):
    arch_class_name: Text
    arch_kwargs: Anything | None = None
    arch_kwargs_requiring_import: list[StrictStr] | None = None


class _Exchanged(BaseModel):
    spacing: Annotated[list[Positive | None], Field(min_length=3, max_length=3)] | None = None
    patch_size: _Sizes | None = None
    use_mask_for_norm: StrictBool | list[StrictBool] | None = None
    resampling_fn_data_kwargs: Anything | None = None


class _PretrainPlan(BaseModel):
    dataset_name: StrictStr | None = None
    configurations: dict[StrictStr, _Exchanged] = {}
    transpose_forward: Annotated[list[Count], AfterValidator(_axes)] | None = None
    original_median_spacing_after_transp: Annotated[list[Positive], Field(min_length=3, max_length=3)] | None = None


class AdaptationPlan(BaseModel):
    """What nnU-Net's development version keeps beside exchanged weights."""

    architecture_plans: _Described
    pretrain_plan: _PretrainPlan = _PretrainPlan()
    pretrain_num_input_channels: Annotated[int, Field(strict=True, ge=1, le=_MOST_CHANNELS)] = 1
    recommended_downstream_patchsize: _Sizes | None = None
    pretrain_patch_size: _Sizes | None = None
    key_to_encoder: StrictStr = ""

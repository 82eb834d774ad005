"""What a method is: hyper-parameters, views, step. The loop around it lives in `nnssl.pretraining`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.pyramid import FeaturePyramid

# Above these, a typing mistake would end in a machine without memory and not in a sentence.
_MOST = {"batch_size": 100_000, "patch_size": 10_000}
_MOST_STEPS = 10_000_000  # of a run; they are listed before it begins

Batch = dict[str, Tensor]
Sample = dict[str, np.ndarray]


class Volume(Protocol):
    """One preprocessed case as a method sees it in a loader worker (`nnssl.data.volumes` implements it)."""

    index: int
    spacing: tuple[float, float, float]

    @property
    def hu_affine(self) -> np.ndarray:
        """(C, 2) offset and scale: offset + scale * value is in HU for CT, a fraction of the range for the others."""

    @property
    def is_ct(self) -> np.ndarray:
        """(C,) bool: which channels are in HU."""

    @property
    def size(self) -> np.ndarray:
        """Voxels along (Z, Y, X)."""

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Values of the box as (C, *size) float32, zero where the box leaves the volume."""

    def read_body(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Body mask of the box as (*size,) bool, False where the box leaves the volume."""

    def random_body_voxel(self, rng: np.random.Generator) -> np.ndarray:
        """A voxel (z, y, x), uniform over the body."""

    def match(self, rng: np.random.Generator) -> Match:
        """A random point of the body and the same place in another volume of the run, by the run's aligner."""


@dataclass(frozen=True)
class Match:
    """A voxel of a volume, and the voxel of another volume that shows the same place of the body.

    The other volume is the same one where the run has no second.
    """

    point: np.ndarray  # (3,)
    other: Volume
    other_point: np.ndarray  # (3,)
    similarity: float = math.nan  # of the two places, where the aligner knows it


FORMERLY_FIXED = "formerly_fixed"  # in the metadata of a field
Value = TypeVar("Value")


def formerly_fixed(value: Value) -> Value:
    """Default of a hyper-parameter that was a constant before: a run of an older version goes on unchanged with it."""
    return cast(Value, field(default=value, metadata={FORMERLY_FIXED: True}))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Hyper-parameters that every method has; a method's own class adds to them and sets its paper's values.

    Names end with their unit. `_hu` is of CT: other images get as large a part of their range of intensities as it is
    of the method's CT window.
    """

    num_epochs: int = 1000
    steps_per_epoch: int = 100
    val_steps_per_epoch: int = 10
    save_every_epochs: int = 10
    batch_size: int | None = None  # volumes a step over all processes; None: the plans' batch size
    patch_size: tuple[int, int, int] | None = None  # (Z, Y, X) voxels; None: the plans' patch size
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    momentum: float = 0.9  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam and AdamW
    amsgrad: bool = False  # of Adam and AdamW: divide by the largest second moment so far
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    gradient_clip: float | None = 1.0  # norm over all parameters; None: no clipping
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # auto: bf16, else fp16, on CUDA; float32 on CPU
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "steps_per_epoch", "save_every_epochs", "batch_size", "patch_size"):
            at_least(self, name, 1)
        at_least(self, "val_steps_per_epoch", 0)
        at_least(self, "warmup_steps", 0)
        at_least(self, "weight_decay", 0.0)
        at_least(self, "seed", 0)
        if self.seed >= 2**63:
            raise UserError(f"seed has to be below 2^63, not {self.seed}")
        below_one(self, "momentum")
        below_one(self, "betas")
        for option in fields(self):
            if option.name.endswith("_probability"):
                between(self, option.name, 0, 1)
        for name, most in _MOST.items():
            at_most(self, name, most)
        if self.num_epochs * (self.steps_per_epoch + self.val_steps_per_epoch) > _MOST_STEPS:
            raise UserError(f"num_epochs={self.num_epochs} of steps_per_epoch={self.steps_per_epoch} are more than "
                            f"{_MOST_STEPS:,} steps, with val_steps_per_epoch; set fewer")  # fmt: skip
        positive(self, "learning_rate")
        positive(self, "gradient_clip")

    @property
    def patch(self) -> tuple[int, int, int]:
        """`patch_size`, which is the plans' once a run is resolved."""
        assert self.patch_size is not None
        return self.patch_size

    @property
    def volumes(self) -> int:
        """`batch_size`, which is the plans' once a run is resolved."""
        assert self.batch_size is not None
        return self.batch_size


def at_least(config: MethodConfig, name: str, least: float) -> None:
    """Refuse a hyper-parameter (or an entry of one) that is below its least value; None is fine."""
    if not all(value >= least for value in _entries(config, name)):
        raise UserError(f"{name} has to be at least {least}, not {getattr(config, name)}")


def at_most(config: MethodConfig, name: str, most: float) -> None:
    """Refuse a hyper-parameter (or an entry of one) that is above what any run could use; None is fine."""
    if not all(value <= most for value in _entries(config, name)):
        raise UserError(f"{name} has to be at most {most:,}, not {getattr(config, name)}")


def below_one(config: MethodConfig, name: str) -> None:
    """Refuse a hyper-parameter (or an entry of one) outside of [0, 1)."""
    if not all(0 <= value < 1 for value in _entries(config, name)):
        raise UserError(f"{name} has to be at least 0 and below 1, not {getattr(config, name)}")


def between(config: MethodConfig, name: str, least: float, most: float) -> None:
    """Refuse a hyper-parameter that is outside of [least, most]."""
    if not least <= getattr(config, name) <= most:
        raise UserError(f"{name} has to be from {least:,} to {most:,}, not {getattr(config, name)}")


def ascending(config: MethodConfig, name: str, least: float, most: float) -> None:
    """Refuse a range (low, high) that descends or leaves [least, most]."""
    low, high = getattr(config, name)
    if not least <= low <= high <= most:
        raise UserError(f"{name} has to be LOW,HIGH from {least:,} to {most:,} with LOW at most HIGH, not {low},{high}")


def positive(config: MethodConfig, name: str) -> None:
    """Refuse a hyper-parameter that is not a finite number above 0; None is fine."""
    value = getattr(config, name)
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{name} has to be a finite number above 0, not {value}")


def _entries(config: MethodConfig, name: str) -> tuple[float, ...]:
    """Numbers of a hyper-parameter: all of a tuple, none of None."""
    value = getattr(config, name)
    return value if isinstance(value, tuple) else () if value is None else (value,)


@dataclass
class StepOutput:
    """Result of one step: what to minimise, and what to watch.

    Args:
        loss: scalar with gradient; its mean over the processes is the loss of the whole batch.
        terms: named scalars for the log, of any gradient.
        embeddings: (M, d) vectors of this process for the collapse monitor, before or after normalisation.
        pairs: two times (N, d) vectors without gradient, of which those with the same number are to be alike, for
            alignment and uniformity; a pair with NaN counts for nothing. None where the method has no such pairs.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor
    pairs: tuple[Tensor, Tensor] | None = None


@dataclass
class Panel:
    """One picture of `views.png`: an image (rows, columns) with numbered points (row, column) and boxes on it.

    Boxes are (row, column, height, width) in pixels, each in a colour of its own; `frames` are boxes drawn thin and
    white beneath them, such as a grid. `texts` are (text, row, column) of their centres. `aspect` is the height of a
    pixel over its width.
    """

    image: np.ndarray
    title: str
    points: Sequence[tuple[int, float, float]] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()
    aspect: float = 1.0
    values: tuple[float, float] | None = field(default=None)  # black and white point; None: the image's own range
    frames: Sequence[tuple[float, float, float, float]] = ()
    texts: Sequence[tuple[str, float, float]] = ()


class Method(nn.Module):
    """A pretext task. `backbone` is what is transferred; everything else in the module belongs to the pretraining.

    `sample` runs in a loader worker and must depend on its arguments only; `augment` and `step` run on the device.
    """

    config_class: ClassVar[type[MethodConfig]]
    levels: ClassVar[Literal["encoder", "decoder"]]  # which maps of the plans' network form the pyramid
    host_keys: ClassVar[frozenset[str]] = frozenset()  # entries of a batch that stay on the CPU: reading a parameter
    # that lies on the card, to decide what to launch, would wait for everything launched before
    pairs_volumes: ClassVar[bool] = False  # whether samples take a second volume, by `Volume.match`
    of_the_run: ClassVar[tuple[str, ...]] = ()  # how the names of what a run that starts from its weights leaves begin

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    @classmethod
    def check(cls, config: Any, backbone: FeaturePyramid) -> None:
        """Raise UserError where the options and the network do not fit together."""
        backbone.check_patch(config.patch_size, config.batch_size)

    @classmethod
    def volumes_per_step(cls, config: Any) -> int:
        """How many different volumes the samples of one step come from (as far as there are so many)."""
        return int(config.volumes)

    @classmethod
    def sample(cls, volume: Volume, config: Any, rng: np.random.Generator) -> Sample:
        """Crops of one volume, as raw arrays and geometry."""
        raise NotImplementedError

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Samples of one process and step as one batch; arrays are stacked along a new first axis."""
        return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}

    def augment(self, batch: Batch) -> Batch:
        """The batch with its views augmented; deterministic, all random numbers come with the samples."""
        return batch

    def step(self, batch: Batch) -> StepOutput:
        """Loss of an augmented batch."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """What happens after the optimiser's step, such as a momentum network's update."""

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Rows of pictures that show the views of an augmented batch on the CPU."""
        raise NotImplementedError

    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """Rows of pictures of what the network makes of an augmented batch, for `reconstruction.png`; none by default.

        Called in evaluation mode by one process alone.
        """
        return []

    def forward(self, batch: Batch) -> StepOutput:
        """`step`, under the name that DistributedDataParallel calls."""
        return self.step(batch)


def to_device(batch: Mapping[str, Tensor], device: torch.device, host_keys: frozenset[str] = frozenset()) -> Batch:
    """The batch on the device, but for `host_keys`; copies from pinned memory do not block."""
    return {k: v if k in host_keys else v.to(device, non_blocking=True) for k, v in batch.items()}

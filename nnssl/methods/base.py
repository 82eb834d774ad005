"""The interface of a method: hyper-parameters, views and step. `nnssl.pretraining` has the loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.batch_memory import stacked
from nnssl.core.distributed import world_size
from nnssl.core.errors import UserError
from nnssl.core.geometry import Box
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.methods.shared.parts import check_parts
from nnssl.networks.pyramid import FeaturePyramid

# Larger values are typing mistakes that would use up the memory; a run lists its steps before it begins.
_MOST_VOLUMES, _MOST_VOXELS, _MOST_STEPS = 100_000, 10_000, 10_000_000

Batch = dict[str, Tensor]
Sample = dict[str, np.ndarray]


class Volume(Protocol):
    """One preprocessed case in a loader worker (implemented by `nnssl.data.volumes`)."""

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
        """(3,) voxels along (Z, Y, X)."""

    def read(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Values of the box as (C, *size) float32, zero outside of the volume."""

    def read_body(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Body mask of the box as (*size,) bool, False outside of the volume."""

    @property
    def body_box(self) -> Box:
        """Smallest box that holds the body."""

    def read_resized_body(self, largest: tuple[int, int, int]) -> np.ndarray:
        """The body's box as (C, z, y, x) float16, resized with aligned corners on axes longer than `largest`."""

    def random_body_voxel(self, rng: np.random.Generator) -> np.ndarray:
        """A voxel (z, y, x), uniform over the body."""

    def match(self, rng: np.random.Generator) -> Match:
        """A random point of the body and its match in another volume of the run, found by the run's aligner."""


@dataclass(frozen=True)
class Match:
    """Two voxels that show the same place of the body, in two volumes (or in the only volume of a run)."""

    point: np.ndarray  # (3,)
    other: Volume
    other_point: np.ndarray  # (3,)
    similarity: float = math.nan  # of the two places, if the aligner gives one


FORMERLY_FIXED = "formerly_fixed"  # in the metadata of a field: the value in versions that had no such option
Value = TypeVar("Value")


def formerly_fixed(value: Value) -> Value:
    """Default of a hyper-parameter that used to be a constant, so that runs of older versions continue unchanged."""
    return formerly(value, value)


def formerly(before: Value, value: Value) -> Value:
    """Default of a hyper-parameter that used to be the constant `before`: runs of older versions continue with that."""
    return cast(Value, field(default=value, metadata={FORMERLY_FIXED: before}))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Hyper-parameters of every method; a method's own class adds some and sets its paper's values as defaults.

    Names end with their unit. `_hu` values are for CT; for other images they scale from the method's CT window to the
    image's range of intensities.
    """

    num_epochs: int = 1000
    steps_per_epoch: int = 100
    val_steps_per_epoch: int = 10
    save_every_epochs: int = 10
    batch_size: int | None = None  # volumes per step over all processes; None: the plans' batch size
    patch_size: tuple[int, int, int] | None = None  # (Z, Y, X) voxels; None: the plans' patch size
    optimiser: Literal["adam", "adamw", "sgd", "nesterov"] = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    momentum: float = 0.9  # of SGD, with Nesterov's or without
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam and AdamW
    amsgrad: bool = False  # of Adam and AdamW: divide by the largest second moment so far
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    warmup_steps: int = 0
    gradient_clip: float | None = 1.0  # norm over all parameters; None: no clipping
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # auto: bf16, else fp16, on CUDA; float32 on CPU
    # two that save memory for time
    checkpoint_activations: bool | None = formerly_fixed(None)  # compute them again; none: as the plans' network says
    accumulate: int = formerly_fixed(1)  # parts of a step's crops that pass through the network one after another
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "num_epochs", "steps_per_epoch", "save_every_epochs", "accumulate")
        at_least(self, 0, "val_steps_per_epoch", "warmup_steps", "weight_decay")
        between(self, 1, _MOST_VOLUMES, "batch_size")
        between(self, 1, _MOST_VOXELS, "patch_size")
        between(self, 0, 2**63 - 1, "seed")
        below_one(self, "momentum", "betas")
        positive(self, "learning_rate", "gradient_clip")
        between(self, 0, 1, *(option.name for option in fields(self) if option.name.endswith("_probability")))
        if self.num_epochs * (self.steps_per_epoch + self.val_steps_per_epoch) > _MOST_STEPS:
            raise UserError(f"num_epochs={self.num_epochs} with steps_per_epoch={self.steps_per_epoch} and "
                            f"val_steps_per_epoch={self.val_steps_per_epoch} gives more than {_MOST_STEPS:,} steps; "
                            f"set fewer")  # fmt: skip

    @property
    def patch(self) -> tuple[int, int, int]:
        """`patch_size` of a resolved run: never None."""
        assert self.patch_size is not None
        return self.patch_size

    @property
    def volumes(self) -> int:
        """`batch_size` of a resolved run: never None."""
        assert self.batch_size is not None
        return self.batch_size


def at_least(config: MethodConfig, least: float, *names: str) -> None:
    """Refuse hyper-parameters, or entries of them, below their least value; None passes."""
    _require(config, names, f"at least {least}", lambda value: value >= least)


def below_one(config: MethodConfig, *names: str) -> None:
    """Refuse hyper-parameters, or entries of them, outside of [0, 1)."""
    _require(config, names, "at least 0 and below 1", lambda value: 0 <= value < 1)


def between(config: MethodConfig, least: float, most: float, *names: str) -> None:
    """Refuse hyper-parameters, or entries of them, outside of [least, most]; None passes."""
    _require(config, names, f"from {least:,} to {most:,}", lambda value: least <= value <= most)


def positive(config: MethodConfig, *names: str) -> None:
    """Refuse hyper-parameters that are not finite numbers above 0; None passes."""
    _require(config, names, "a finite number above 0", lambda value: 0 < value < math.inf)


def share(config: MethodConfig, *names: str) -> None:
    """Refuse hyper-parameters outside of (0, 1]."""
    _require(config, names, "above 0 and at most 1", lambda value: 0 < value <= 1)


def ascending(config: MethodConfig, least: float, most: float, *names: str) -> None:
    """Refuse ranges (low, high) that descend or leave [least, most]."""
    for name in names:
        low, high = getattr(config, name)
        if not least <= low <= high <= most:
            raise UserError(f"{name} must be LOW,HIGH from {least:,} to {most:,} with LOW at most HIGH, not "
                            f"{low},{high}")  # fmt: skip


def _require(config: MethodConfig, names: Sequence[str], wanted: str, holds: Callable[[float], bool]) -> None:
    for name in names:
        value = getattr(config, name)
        entries = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(map(holds, entries)):
            raise UserError(f"{name} must be {wanted}, not {value}")


@dataclass
class StepOutput:
    """Result of one step: the loss, and values to watch.

    Args:
        loss: scalar with gradient; its mean over the processes is the loss of the whole batch.
        terms: named scalars for the log, with or without gradient.
        embeddings: (M, d) vectors of this process for the collapse monitor, before or after normalisation.
        pairs: two (N, d) tensors without gradient whose rows should match, for alignment and uniformity; pairs with NaN
            are ignored. None for methods without such pairs.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor
    pairs: tuple[Tensor, Tensor] | None = None


class Method(nn.Module):
    """A pretext task. Only `backbone` is transferred; the rest of the module belongs to the pretraining.

    `sample` runs in a loader worker and must depend on its arguments only; `augment` and `step` run on the device.
    """

    config_class: ClassVar[type[MethodConfig]]
    levels: ClassVar[Literal["encoder", "decoder"]]  # which maps of the plans' network form the pyramid
    learns_from: ClassVar[str] = ""  # for model cards, as the end of a sentence
    paper: ClassVar[str] = ""  # to cite, in APA style
    # Entries of a batch that stay on the CPU: reading a parameter from the GPU would wait for all that was launched
    # before.
    host_keys: ClassVar[frozenset[str]] = frozenset()
    pairs_volumes: ClassVar[bool] = False  # whether samples are two places that an aligner has matched
    collapses: ClassVar[bool] = True  # whether embeddings that all become alike are a fault
    collapse_cause: ClassVar[str | None] = None  # ends a warning: "likely SOMETHING"; None: nothing in particular
    overlaps_key: ClassVar[str | None] = None  # entry (M, n) of a sample: overlaps of crops and bases; None: no bases
    overlap_fix: ClassVar[str | None] = None  # what to do where crops overlap too much; None: take a smaller patch
    of_the_run: ClassVar[tuple[str, ...]] = ()  # prefixes of state that a run started from these weights does not take

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    @classmethod
    def check(cls, config: Any, backbone: FeaturePyramid) -> None:
        """Raise UserError where the options and the network do not fit together."""
        crops = cls.crops_per_pass(config)
        backbone.check_patch(config.patch, crops)
        check_parts(config.accumulate, crops // world_size(), backbone)

    @classmethod
    def crops_per_pass(cls, config: Any) -> int:
        """Number of crops that pass through the network at once, of all processes together."""
        return int(config.volumes)

    @classmethod
    def volumes_per_step(cls, config: Any) -> int:
        """Number of different volumes that the samples of one step come from, if the run has that many."""
        return int(config.volumes)

    @classmethod
    def resized_body(cls, config: Any) -> tuple[int, int, int] | None:
        """Largest size (z, y, x) of the resized bodies that `sample` reads; None where it reads the volumes."""
        return None

    @classmethod
    def sample(cls, volume: Volume, config: Any, rng: np.random.Generator) -> Sample:
        """Draw crops of one volume, as raw arrays and geometry."""
        raise NotImplementedError

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Stack the samples of one process and step along a new first axis."""
        return {key: stacked([s[key] for s in samples]) for key in samples[0]}

    def augment(self, batch: Batch) -> Batch:
        """Augment the views of a batch, deterministically: all random numbers come with the samples."""
        return batch

    def step(self, batch: Batch) -> StepOutput:
        """Loss of an augmented batch."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Act after the optimiser's step, for example to update a momentum network."""

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """First voxels and ends (B, K, 2, 3) of crops that are compared, also in the padding; None without boxes."""
        return None

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Rows of pictures with the views of an augmented batch on the CPU."""
        raise NotImplementedError

    @classmethod
    def whereabouts(cls, batch: Batch, config: Any) -> list[Whereabouts]:
        """Where the crops of an augmented batch on the CPU are, volume by volume; by default the `crop_boxes`."""
        return Whereabouts.of_boxes(cls.crop_boxes(batch, config))

    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """Rows of pictures of the network's output for `reconstruction.png`, in one process and evaluation mode."""
        return []

    def forward(self, batch: Batch) -> StepOutput:
        """`step`, under the name that DistributedDataParallel calls."""
        return self.step(batch)


def to_device(batch: Mapping[str, Tensor], device: torch.device, host_keys: frozenset[str] = frozenset()) -> Batch:
    """Copy the batch, except for `host_keys`, to the device; copies from pinned memory do not block."""
    return {k: v if k in host_keys else v.to(device, non_blocking=True) for k, v in batch.items()}

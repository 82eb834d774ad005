"""What a family of public weights is: how its files are recognised, and how they become one of our networks.

To add one, write `nnssl/interchange/families/NAME.py` with a `Family` called FAMILY, and add it to the list in
`nnssl.interchange.registry`. `recognises` looks at names and shapes only and is quick; `read` returns `Imported`:

- `state`: the tensors by the names of our backbone (`nnssl.networks.build.build_backbone`), axes z, y, x. Tensors of
  the file that are in none of ours are passed on under a name of their own, or put into `left` with the reason. The
  writer checks that no tensor of the backbone is missing, and names those that it did not take.
- `plans`: from `plans_of`, or nnU-Net's own. Networks trained on (x, y, z) are transposed (`transposing`); where that
  is not exact, keep the axes and give the plans `transpose_forward=(2, 1, 0)`.

A file that is recognised and cannot be used raises `UserError` in `read`, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nnssl.checkpoints.imported import Weights
from nnssl.interchange.opening import Opened

CONFIGURATION = "3d_fullres"
Z_SCORE = "z-score"


@dataclass(frozen=True)
class Imported:
    """Weights read by a family.

    Args:
        weights: the network's, with plans whose `dataset_name` the writer replaces.
        title: what they are, such as "vox2vec, FPN3d(1, 16, 6)".
        licence: as its authors name it; None where unknown.
        citation: of the paper, in one line.
        url: where the weights are published.
        axes: of the file: "zyx", or "xyz" where tensors were transposed.
        left: tensors of the file that are not in `weights.state`, with the reason.
        derived: whether they were trained from weights of somebody else, whose licence is `licence`.
    """

    weights: Weights
    title: str
    licence: str | None
    citation: str
    url: str = ""
    axes: str = "zyx"
    left: Mapping[str, str] = field(default_factory=dict)
    derived: bool = False


@dataclass(frozen=True)
class Family:
    """A kind of public weights.

    Args:
        name: one word, kept in reports.
        about: what it is, for the list of what can be read.
        licence: what the list says of its licence.
        recognises: whether a file is of this family, from its names and shapes.
        read: turns the file into one of our networks; raises UserError where that is impossible.
    """

    name: str
    about: str
    licence: str
    recognises: Callable[[Opened], bool]
    read: Callable[[Opened], Imported]


@dataclass(frozen=True)
class Window:
    """A clip and an affine map, as CT networks normalise: `low` to `high` in HU become `to`."""

    low: float
    high: float
    to: tuple[float, float] = (0.0, 1.0)

    def properties(self) -> dict[str, float]:
        """The same as nnU-Net's CTNormalization states it: clip, subtract `mean`, divide by `std`."""
        std = (self.high - self.low) / (self.to[1] - self.to[0])
        middle = (self.low + self.high) / 2
        return {"mean": self.low - self.to[0] * std, "median": middle, "std": std, "min": self.low, "max": self.high,
                "percentile_99_5": self.high, "percentile_00_5": self.low}  # fmt: skip


def plans_of(
    name: str,
    architecture: Mapping[str, Any],
    spacing: Sequence[float],
    patch_size: Sequence[int],
    intensity: Window | str = Z_SCORE,
    channels: int = 1,
    batch_size: int = 2,
    transpose_forward: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:
    """Complete nnU-Net plans with one configuration, `CONFIGURATION`, that stock nnU-Net preprocesses and builds.

    Args:
        name: of the plans.
        architecture: `network_class_name`, `arch_kwargs` and `_kw_requires_import`.
        spacing: mm, and
        patch_size: voxels, both in the axes of the plans: z, y, x unless `transpose_forward` turns them.
        intensity: a window for CT; or the z-score of each image.
        channels: of the image.
        batch_size: that nnU-Net trains with.
        transpose_forward: order in which nnU-Net gives the axes (z, y, x) to the network.
    """
    is_ct = isinstance(intensity, Window)
    unknown = Window(0.0, 0.0).properties() | {"std": 1.0}  # nnU-Net's z-score reads none of them
    known = intensity.properties() if isinstance(intensity, Window) else unknown
    axes = list(transpose_forward)
    resampling = "resample_data_or_seg_to_shape"
    return {
        "dataset_name": "Dataset000_Unknown",
        "plans_name": name,
        "original_median_spacing_after_transp": [float(mm) for mm in spacing],
        "original_median_shape_after_transp": [int(n) for n in patch_size],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": axes,
        "transpose_backward": [axes.index(axis) for axis in range(3)],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"{name}_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch_size,
                "patch_size": [int(n) for n in patch_size],
                "median_image_size_in_voxels": [float(n) for n in patch_size],
                "spacing": [float(mm) for mm in spacing],
                "normalization_schemes": ["CTNormalization" if is_ct else "ZScoreNormalization"] * channels,
                "use_mask_for_norm": [False] * channels,
                "resampling_fn_data": resampling,
                "resampling_fn_seg": resampling,
                "resampling_fn_data_kwargs": _resampling(is_seg=False, separate_z=False),
                "resampling_fn_seg_kwargs": _resampling(is_seg=True),
                "resampling_fn_probabilities": resampling,
                "resampling_fn_probabilities_kwargs": _resampling(is_seg=False),
                "architecture": {"_kw_requires_import": [], **architecture},
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): dict(known) for c in range(channels)},
    }


def _resampling(is_seg: bool, separate_z: bool | None = None) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": separate_z}


def dataset_json_of(*channels: str) -> dict[str, Any]:
    """A `dataset.json` for images with these channels: "CT", "MR", or "image" where nothing is known."""
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }


def without_prefixes(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Names without the wrappers that begin them, however often they come; two that would be one stay as they are."""
    short = {}
    for name in tensors:
        short[name] = name
        while start := next((prefix for prefix in prefixes if short[name].startswith(prefix)), ""):
            short[name] = short[name][len(start) :]
    times = Counter(short.values())
    return {short[name] if times[short[name]] == 1 else name: tensor for name, tensor in tensors.items()}

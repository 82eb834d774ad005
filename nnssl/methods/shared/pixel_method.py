"""Base of the methods that learn an encoding of every voxel from two overlapping crops (LAPN, SAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.methods.base import Batch, Method, MethodConfig, Sample, Volume, at_least, below_one
from nnssl.methods.panel import Panel
from nnssl.methods.shared.overlapping_crops import (
    boxes_of_crops,
    collate_matched,
    matched_view_panels,
    most_overlap,
    region_size,
    sample_pair,
    sample_points,
    scaled_crops,
)
from nnssl.networks.encodings import EncodingHead
from nnssl.networks.pyramid import FeaturePyramid


@dataclass(frozen=True, kw_only=True)
class PixelConfig(MethodConfig):
    """Hyper-parameters of the pair of crops."""

    points_per_pair: int = 1024  # matched points inside the body, at most
    least_overlap: float = 0.125  # of the larger crop
    scale_range: float = 0.1  # each crop is scaled by U(1 - r, 1 + r)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "points_per_pair")
        below_one(self, "scale_range")
        most = most_overlap(self.scale_range)
        if not 0 < self.least_overlap <= most:
            raise UserError(f"least_overlap must be above 0 and at most {most:.3f}, which crops of all scales can "
                            f"reach, not {self.least_overlap}; or set a smaller scale_range")  # fmt: skip


class PixelMethod(Method):
    """Backbone and encoding heads, and the pair of crops that they learn from.

    Subclasses define the heads (`encoding_heads`) and compare their encodings (`step`).
    """

    levels: ClassVar[Literal["encoder", "decoder"]] = "decoder"
    host_keys = frozenset({"counts"})
    config: PixelConfig

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__(backbone, config)
        self.heads = nn.ModuleDict(self.encoding_heads(config, backbone))

    @classmethod
    def encoding_heads(cls, config: Any, backbone: FeaturePyramid) -> dict[str, EncodingHead]:
        """Make fresh heads by name, from the arguments only: the encoder is built without the method too."""
        raise NotImplementedError

    @classmethod
    def sample(cls, volume: Volume, config: Any, rng: np.random.Generator) -> Sample:
        """Draw two crops around a body voxel, and body points inside both (methods.md 5.1).

        Returns arrays, for C channels and M matched points:
            regions: (2, C, *R) float32, the plans' normalised values from one voxel before each crop, zeros at the end;
                R fits the largest scale.
            starts: (2, 3) first voxels of the crops in the volume; negative where they begin before it.
            scales: (2,) float32, voxels of the volume per voxel of the patch.
            points: (M, 2, 3) float32 positions in the first and in the second patch, in voxels.
            places: (M, 4) float32 volume index and position in mm in the volume.
            spacing, size, volume: (3,) mm and (3,) voxels of the volume, and () its index.
        """
        patch = config.patch
        anchor = volume.random_body_voxel(rng)
        starts, scales = sample_pair(rng, anchor, volume.size, patch, config.scale_range, config.least_overlap)
        points, source = sample_points(
            rng, volume.read_body, volume.size, patch, starts, scales, config.points_per_pair
        )
        return {
            "regions": _read_regions(volume, starts, scales, config),
            "starts": starts,
            "scales": scales.astype(np.float32),
            "points": points.astype(np.float32),
            "places": np.column_stack([np.full(len(source), volume.index), source * volume.spacing]).astype(np.float32),
            "spacing": np.asarray(volume.spacing, dtype=np.float32),
            "size": np.asarray(volume.size),
            "volume": np.asarray(volume.index),
        }

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """See `collate_matched`."""
        return collate_matched(samples, "points", "places")

    def augment(self, batch: Batch) -> Batch:
        """Resample the regions by each crop's scale: `crops` (B, 2, C, *patch) take their place."""
        regions = batch["regions"]
        patch = self.config.patch
        crops = scaled_crops(regions.flatten(0, 1), batch["scales"].flatten(), patch)
        kept = {key: value for key, value in batch.items() if key != "regions"}
        return {"crops": crops.view(*regions.shape[:3], *patch), **kept}

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """Both crops of each volume."""
        return boxes_of_crops(batch["starts"], config.patch, batch["scales"])

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Both crops of up to four pairs, with eight of the matched points."""
        return matched_view_panels(batch["crops"].numpy(), batch["points"].numpy())


def _read_regions(volume: Volume, starts: np.ndarray, scales: np.ndarray, config: Any) -> np.ndarray:
    """Read the regions of both crops with one read of the volume."""
    begin = starts - 1
    extents = np.stack([region_size(config.patch_size, scale) for scale in scales])
    origin = begin.min(0)
    whole = volume.read(origin, (begin + extents).max(0))
    most = region_size(config.patch_size, float(np.float32(1 + config.scale_range)))  # rounded as the scales are
    regions = np.zeros((2, len(whole), *most), dtype=np.float32)
    for region, first, extent in zip(regions, begin - origin, extents, strict=True):
        z, y, x = extent
        box: tuple[Any, ...] = (slice(None), *map(slice, first, first + extent))
        region[:, :z, :y, :x] = whole[box]
    return regions

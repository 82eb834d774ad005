"""Encodings of voxels: unit vectors made from a feature pyramid, as whole maps or at single points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.pyramid import FeaturePyramid, Stride, cropped, gather_voxels, interpolate_cells, padded_to_multiple


class EncodingHead(nn.Module):
    """Map one level of a pyramid to vectors of length 1 (methods.md 5.2).

    The map is a 1x1x1 convolution, or the identity where the level already is an encoding of `dim` channels.

    Args:
        backbone: The pyramid that the maps come from; it is not kept.
        level: The level to read, 0 for the finest.
        dim: Number of channels d of the encoding.
    """

    def __init__(self, backbone: FeaturePyramid, level: int, dim: int) -> None:
        super().__init__()
        self.level, self.dim = level, dim
        self.stride: Stride = backbone.strides[level]
        is_encoding = backbone.encodes and level == 0 and backbone.channels[0] == dim
        self.layer = None if is_encoding else nn.Conv3d(backbone.channels[level], dim, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Map the pyramid, finest first, to unit vectors (B, d, Z_l, Y_l, X_l); float32 also under autocast."""
        feature_map = pyramid[self.level]
        return l2_normalise(feature_map if self.layer is None else self.layer(feature_map), dim=1)

    def at(self, pyramid: list[Tensor], points: Tensor) -> Tensor:
        """Read the encoding at points: `forward`'s map, interpolated trilinearly and normalised again.

        The map itself, which at full resolution would be larger than all others, is never built.

        Args:
            pyramid: Feature maps (B, C_l, Z_l, Y_l, X_l), finest first.
            points: Floats (N, 4) of [batch, z, y, x], in voxels of the network's input.

        Returns:
            Unit vectors (N, d), float32 (float64 for float64 maps).
        """
        feature_map = pyramid[self.level]
        corners, weights = interpolate_cells(feature_map.shape[2:], self.stride, points)
        columns = zip(corners.flatten(0, 1).unbind(1), (1, *self.stride), strict=True)
        first_voxels = torch.stack([cells * step for cells, step in columns], dim=1)
        features = gather_voxels([feature_map], [self.stride], first_voxels)
        if self.layer is not None:
            features = F.linear(features, self.layer.weight.flatten(1), self.layer.bias)
        cells = l2_normalise(features).unflatten(0, corners.shape[:2])
        mixed = cells * weights.to(cells.dtype)[..., None]
        return l2_normalise(mixed.sum(1))

    def description(self) -> dict[str, int]:
        """Arguments of the head besides the pyramid, as JSON types."""
        return {"level": self.level, "dim": self.dim}


class PixelEncoder(nn.Module):
    """A backbone with its encoding heads; state dict: `backbone.*` and `heads.<name>.*`.

    Args:
        backbone: Feature pyramid.
        heads: By name, such as "fine" and "coarse".
    """

    def __init__(self, backbone: FeaturePyramid, heads: Mapping[str, EncodingHead]) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.leave_out_finer(min(head.level for head in heads.values()))
        self.heads = nn.ModuleDict(heads)
        self.input_channels = backbone.input_channels
        self.strides: dict[str, Stride] = {name: head.stride for name, head in heads.items()}  # voxels per cell
        self.dims: dict[str, int] = {name: head.dim for name, head in heads.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map an image of any size to its encodings.

        Args:
            x: (B, C, Z, Y, X) in the normalised values of the plans that the encoder was trained with.

        Returns:
            Unit vectors (B, d, ceil(Z / s_z), ceil(Y / s_y), ceil(X / s_x)) by the name of the head, with its stride s.
            The image is padded with zeros at its end where the backbone needs it.
        """
        size = x.shape[2:]
        pyramid = self.backbone(padded_to_multiple(x, self.backbone.divisor))
        maps: dict[str, Tensor] = {}
        for name, head in self.named_heads().items():
            maps[name] = cropped(head(pyramid), [-(-n // s) for n, s in zip(size, head.stride, strict=True)])
        return maps

    def named_heads(self) -> dict[str, EncodingHead]:
        """The heads by name, typed."""
        return {name: head for name, head in self.heads.items() if isinstance(head, EncodingHead)}

    def freeze(self) -> PixelEncoder:
        """Switch to evaluation and turn gradients off; returns itself."""
        self.requires_grad_(False)
        return self.eval()


def heads_from_description(backbone: FeaturePyramid, described: Mapping[str, Any]) -> dict[str, EncodingHead]:
    """Make heads from `{name: EncodingHead.description()}`."""
    return {name: EncodingHead(backbone, head["level"], head["dim"]) for name, head in described.items()}

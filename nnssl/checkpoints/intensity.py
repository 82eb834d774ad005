"""The same intensities as in pretraining: from the target plans' normalised values to the source plans'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.build import resolve_configuration

_CT = "CTNormalization"


@dataclass(frozen=True)
class ChannelMap:
    """clip(scale * value + offset, low, high) of one channel, in normalised values."""

    scale: float
    offset: float
    low: float
    high: float


_WIDEST = float(torch.finfo(torch.float32).max)  # infinity is no JSON
_UNCHANGED = ChannelMap(1.0, 0.0, -_WIDEST, _WIDEST)


class IntensityBridge(nn.Module):
    """A fixed affine map and clip of each channel. It holds no state: plans describe it entirely.

    Args:
        channels: One `ChannelMap`, as a dictionary, per channel.
    """

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, channels: Sequence[Mapping[str, float]]) -> None:
        super().__init__()
        for name in ("scale", "offset", "low", "high"):
            values = torch.tensor([float(channel[name]) for channel in channels]).reshape(1, -1, 1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, C, Z, Y, X) in the target plans' values to the source plans' values."""
        mapped = x.float() * self.scale + self.offset
        return torch.minimum(torch.maximum(mapped, self.low), self.high)


@dataclass(frozen=True)
class Bridge:
    """What stands between the intensities of two plans.

    Args:
        channels: for `IntensityBridge`; None where both plans give the same values.
        warnings: what cannot be undone, in sentences.
    """

    channels: list[dict[str, float]] | None
    warnings: list[str]


def bridge_intensities(
    target: dict[str, Any], source: dict[str, Any], names: tuple[str, str], allow: bool = False
) -> Bridge:
    """How to turn intensities that `target` plans normalised into those of the `source` plans.

    Two CT channels differ by an affine map and the clipping window: exact except for what the target's window has cut
    off. Other schemes take their numbers from each image, so only the same scheme fits.

    Args:
        target: nnU-Net plans of the dataset to train on.
        source: plans of the pretraining; its one channel serves several target channels.
        names: of the target's and of the source's configuration.
        allow: whether channels of other schemes are left as they are, with a warning.

    Raises:
        UserError: the schemes differ and are not allowed to, or the numbers of channels do not fit.
    """
    wanted, given = (resolve_configuration(p, n) for p, n in zip((target, source), names, strict=True))
    schemes, source_schemes = wanted["normalization_schemes"], given["normalization_schemes"]
    if len(source_schemes) not in (1, len(schemes)):
        raise UserError(f"the pretraining read {len(source_schemes)} channels and this dataset has {len(schemes)}; "
                        f"only one channel can serve several: pretrain on images with these channels")  # fmt: skip
    maps: list[ChannelMap | None] = []
    warnings: list[str] = []
    for channel, scheme in enumerate(schemes):
        origin = channel if len(source_schemes) > 1 else 0
        if scheme != source_schemes[origin]:
            maps.append(None)
            warnings.append(_other_scheme(channel, scheme, source_schemes[origin], allow))
            continue
        if scheme == _CT:
            maps.append(_between_windows(_properties(target, channel), _properties(source, origin), channel, warnings))
            continue
        maps.append(None)
        if wanted["use_mask_for_norm"][channel] != given["use_mask_for_norm"][origin]:
            warnings.append(f"channel {channel} is normalised inside a mask in only one of pretraining and this "
                            f"dataset, so that its intensities differ; nnssl_transfer makes plans in which they "
                            f"agree")  # fmt: skip
    if not any(maps):
        return Bridge(None, warnings)
    return Bridge([asdict(m or _UNCHANGED) for m in maps], warnings)


def _other_scheme(channel: int, scheme: str, of_source: str, allow: bool) -> str:
    """A warning, if that is allowed."""
    said = (f"channel {channel} is normalised by {scheme} and was by {of_source} in pretraining, which cannot be "
            f"turned into one another")  # fmt: skip
    if not allow:
        raise UserError(f"{said}; pretrain on images of the same kind, or name the channel in dataset.json as there "
                        f"and plan anew")  # fmt: skip
    return f"{said}: its values stay as they are"


def _between_windows(
    target: Mapping[str, float], source: Mapping[str, float], channel: int, warnings: list[str]
) -> ChannelMap | None:
    """From one CT window to another; None where both are the same."""
    keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
    if all(target[key] == source[key] for key in keys):
        return None
    low, high = source["percentile_00_5"], source["percentile_99_5"]
    if target["percentile_00_5"] > low or target["percentile_99_5"] < high:
        warnings.append(f"channel {channel}: pretraining saw {low:.0f} to {high:.0f} HU and these plans keep "
                        f"{target['percentile_00_5']:.0f} to {target['percentile_99_5']:.0f}; nnssl_transfer makes "
                        f"plans that keep what pretraining saw")  # fmt: skip
    std = max(source["std"], 1e-8)  # as CTNormalization does
    return ChannelMap(
        scale=max(target["std"], 1e-8) / std,
        offset=(target["mean"] - source["mean"]) / std,
        low=(low - source["mean"]) / std,
        high=(high - source["mean"]) / std,
    )


def _properties(plans: dict[str, Any], channel: int) -> Mapping[str, float]:
    found: Mapping[str, float] = plans["foreground_intensity_properties_per_channel"][str(channel)]
    return found

"""MONAI's SegResNet and SegResNetDS as feature pyramids, and as segmentation networks that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import FeaturePyramid, Levels

FILTERS, DOWN, UP = 16, (1, 2, 2, 4), (1, 1, 1)  # of SuPreM's SegResNet
DS_FILTERS, DS_DOWN = 32, (1, 2, 2, 4, 4)  # of CT-FM's SegResNetDS


class SegResNetPyramid(FeaturePyramid):
    """The maps of MONAI's `SegResNet` (Myronenko 2018), under the names of its state dict.

    Encoder levels are the outputs of the downward layers. Decoder levels are the outputs of the upward layers, the
    finest after the last norm and ReLU, and the coarsest map of the encoder.

    Args:
        input_channels: Number of channels of the image.
        init_filters: Number of channels of the finest level; they double from level to level.
        blocks_down: Number of residual blocks of each downward layer.
        blocks_up: Number of residual blocks of each upward layer, coarsest first.
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        init_filters: int = FILTERS,
        blocks_down: Sequence[int] = DOWN,
        blocks_up: Sequence[int] = UP,
        levels: Levels = "encoder",
    ) -> None:
        _check_numbers("SegResNet", blocks_down, blocks_up)
        if init_filters % 8:
            raise UserError(f"SegResNet normalises 8 groups of channels; use a multiple of 8 as `init_filters` instead "
                            f"of {init_filters}")  # fmt: skip
        depth = len(blocks_down)
        super().__init__(
            [init_filters * 2**level for level in range(depth)], [(2**level,) * 3 for level in range(depth)],
            input_channels,
        )  # fmt: skip
        self.levels = levels
        self.divisor = self.strides[-1]
        (kind,) = import_monai("SegResNet", "monai.networks.nets", "SegResNet")
        network = kind(
            in_channels=input_channels,
            init_filters=init_filters,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )
        self.convInit, self.down_layers = network.convInit, network.down_layers
        self.up_layers, self.up_samples = network.up_layers, network.up_samples
        self.conv_final = network.conv_final[:2]  # without the segmentation layer
        if levels == "encoder":
            _leave_out(self, "up_layers", "up_samples", "conv_final")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by `divisor`, to its levels, finest first."""
        x = self.convInit(x)
        maps = []
        for layer in self.down_layers:
            x = layer(x)
            maps.append(x)
        if self.levels == "encoder":
            return maps
        pyramid = maps[-1:]
        for raising, layer, skip in zip(self.up_samples, self.up_layers, maps[-2::-1], strict=True):
            pyramid.append(layer(raising(pyramid[-1]) + skip))
        return [self.conv_final(pyramid[-1]), *pyramid[-2::-1]]

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Group normalisation does."""
        return True


class SegResNet(SegmentationNetwork):
    """`SegResNetPyramid` with MONAI's single segmentation layer.

    Plans name it as "nnssl.networks.segresnet.SegResNet". With deep supervision the result is a list of the one output.
    """

    single_output = True

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], **arguments: Any
    ) -> SegResNetPyramid:
        """Build `SegResNetPyramid`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, len(arguments.get("blocks_down", DOWN)))
        return SegResNetPyramid(input_channels, levels=levels, **arguments)


class SegResNetDSPyramid(FeaturePyramid):
    """The maps of MONAI's `SegResNetDS`, under the names of its state dict.

    Encoder levels are those of its `encoder`. Decoder levels are the outputs of its upward layers and the coarsest map
    of the encoder.

    Args:
        input_channels: Number of channels of the image.
        init_filters: Number of channels of the finest level; they double from level to level.
        blocks_down: Number of residual blocks of each level of the encoder.
        blocks_up: Number of residual blocks of each upward layer, coarsest first; None for one each.
        norm: "batch" or "instance".
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        init_filters: int = DS_FILTERS,
        blocks_down: Sequence[int] = DS_DOWN,
        blocks_up: Sequence[int] | None = None,
        norm: str = "batch",
        levels: Levels = "encoder",
    ) -> None:
        up = tuple(blocks_up) if blocks_up is not None else (1,) * (len(blocks_down) - 1)
        _check_numbers("SegResNetDS", blocks_down, up)
        if norm not in ("batch", "instance"):
            raise UserError(f"the norm of SegResNetDS is batch or instance, not {norm}; mend the plans' architecture")
        depth = len(blocks_down)
        super().__init__(
            [init_filters * 2**level for level in range(depth)], [(2**level,) * 3 for level in range(depth)],
            input_channels,
        )  # fmt: skip
        self.levels = levels
        self.divisor = self.strides[-1]
        self.norm = norm
        (kind,) = import_monai("SegResNetDS", "monai.networks.nets.segresnet_ds", "SegResNetDS")
        network = kind(
            in_channels=input_channels,
            init_filters=init_filters,
            blocks_down=tuple(blocks_down),
            blocks_up=up,
            norm=norm,
        )
        self.encoder, self.up_layers = network.encoder, network.up_layers
        for layer in self.up_layers:
            del layer["head"]
        self.convolutional = True
        if levels == "encoder":
            _leave_out(self, "up_layers")
        else:
            self.decoding = ("up_layers",)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by `divisor`, to its levels, finest first."""
        maps: list[Tensor] = self.encoder(x)
        if self.levels == "encoder":
            return maps
        x = maps[-1]
        pyramid = [x]
        steps: list[tuple[Any, Tensor]] = list(zip(self.up_layers, reversed(maps[:-1]), strict=True))
        for layer, skip in steps[: len(steps) - self.finest]:
            x = layer["blocks"](layer["upsample"](x) + skip)
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Batch normalisation does where there are several volumes."""
        return self.norm == "batch" and batch_size > 1


class SegResNetDS(SegmentationNetwork):
    """`SegResNetDSPyramid` with a 1x1x1 segmentation layer per level above the coarsest.

    Plans name it as "nnssl.networks.segresnet.SegResNetDS".
    """

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], **arguments: Any
    ) -> SegResNetDSPyramid:
        """Build `SegResNetDSPyramid`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, len(arguments.get("blocks_down", DS_DOWN)))
        return SegResNetDSPyramid(input_channels, levels=levels, **arguments)


def _leave_out(pyramid: FeaturePyramid, *parts: str) -> None:
    pyramid.unused = tuple(f"{part}." for part in parts)
    for part in parts:
        module: nn.Module = getattr(pyramid, part)
        module.requires_grad_(False)


def _check_numbers(name: str, down: Sequence[int], up: Sequence[int]) -> None:
    if len(down) < 2 or len(up) != len(down) - 1 or min(*down, *up) < 1:
        raise UserError(f"{name} needs two or more `blocks_down`, all of at least 1, and one of `blocks_up` fewer, not "
                        f"{list(down)} and {list(up)}; mend the plans' architecture")  # fmt: skip

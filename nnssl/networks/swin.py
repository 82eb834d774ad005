"""MONAI's SwinUNETR as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, Levels, Stride, spread
from nnssl.networks.swin_visible import visible_stages
from nnssl.networks.window_attention import fuse_windows

_DECODER = ("decoder5.", "decoder4.", "decoder3.", "decoder2.", "decoder1.")


class SwinPyramid(FeaturePyramid):
    """The maps of a SwinUNETR (Hatamizadeh et al. 2022, He et al. 2023), under the names of MONAI's state dict.

    Encoder levels are the outputs of its five convolution blocks, at strides 1, 2, 4, 8 and 32 (VoCo; methods.md 2.2):
    `encoder1` reads the image, the others the Swin transformer's stages. Decoder levels are the five stages of the
    decoder and the bottleneck, at strides 1, 2, 4, 8, 16 and 32. The whole network is built; stages that the levels do
    not use are neither trained nor run.

    Args:
        input_channels: Number of channels of the image.
        feature_size: Number of channels of the finest level; stage i of the transformer has feature_size * 2^i.
        depths: Number of transformer blocks of each of the four stages.
        num_heads: Number of attention heads of each stage.
        window_size: Side of the attention windows, in cells.
        use_checkpoint: Compute the transformer's activations again in the backward pass, to save memory.
        use_v2: Begin every stage of the transformer with a residual convolution (He et al. 2023), as VoCo does; without
            them it is the Swin transformer (Liu et al. 2021) in 3D, as Alice's.
        levels: "encoder" or "decoder".
        axes: Order in which the transformer reads the axes: "xyz" for weights that were trained so. Transposed weights
            cannot stand in for it, because MONAI numbers the cells of a window that is cut to a small map, and the
            cells that a patch merging joins, in this order. The convolution blocks read (z, y, x) always.
        merging: "monai" for the patch merging of the installed MONAI; "six_cells" for that of MONAI before 1.5, see
            `SixCellMerging`.

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_checkpoint: bool = False,
        use_v2: bool = True,
        levels: Levels = "encoder",
        axes: Literal["zyx", "xyz"] = "zyx",
        merging: Literal["monai", "six_cells"] = "monai",
    ) -> None:
        widths = [feature_size * factor for factor in (1, 1, 2, 4, 8, 16)]
        _check_widths(feature_size, depths, num_heads)
        _check_choices(axes, merging)
        shown = [0, 1, 2, 3, 5] if levels == "encoder" else range(6)
        strides: list[Stride] = [(2**level,) * 3 for level in shown]
        super().__init__([widths[level] for level in shown], strides, input_channels)
        self.levels = levels
        self.axes = axes
        self.divisor = (32,) * 3
        self.mask_unit = self.divisor
        self.swinViT = _transformer(
            merging,
            in_chans=input_channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            use_checkpoint=use_checkpoint,
            use_v2=use_v2,
        )
        basic, raising = import_monai("SwinUNETR", "monai.networks.blocks", "UnetrBasicBlock", "UnetrUpBlock")
        self.encoder1 = _block(basic, input_channels, widths[0])
        self.encoder2 = _block(basic, widths[1], widths[1])
        self.encoder3 = _block(basic, widths[2], widths[2])
        self.encoder4 = _block(basic, widths[3], widths[3])
        self.encoder10 = _block(basic, widths[5], widths[5])
        self.decoder5 = _block(raising, widths[5], widths[4], upsample_kernel_size=2)
        self.decoder4 = _block(raising, widths[4], widths[3], upsample_kernel_size=2)
        self.decoder3 = _block(raising, widths[3], widths[2], upsample_kernel_size=2)
        self.decoder2 = _block(raising, widths[2], widths[1], upsample_kernel_size=2)
        self.decoder1 = _block(raising, widths[1], widths[0], upsample_kernel_size=2)
        if levels == "encoder":
            self.unused = _DECODER
            for stage in self._decoder_stages():
                stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by 32, to its levels, finest first."""
        return self._maps(x, [self._turned(stage) for stage in self.swinViT(self._turned(x))])

    def masked_levels(self, x: Tensor, mask: BlockMask) -> list[Tensor]:
        """As in every pyramid; hidden tokens take no part in the transformer (see `swin_visible`).

        The convolution blocks beside it read zeros in hidden blocks.
        """
        stages = visible_stages(self.swinViT, self._turned(x), mask if self.axes == "zyx" else _turned_mask(mask))
        cleared = x.masked_fill(spread(mask.hidden, x.shape[2:]), 0)
        return self._maps(cleared, [self._turned(stage) for stage in stages])

    def _turned(self, x: Tensor) -> Tensor:
        """Maps (B, C, Z, Y, X) in the transformer's order of axes, and back."""
        return x if self.axes == "zyx" else x.transpose(2, 4)

    def _maps(self, x: Tensor, stages: list[Tensor]) -> list[Tensor]:
        """The levels from the image and the transformer's stages at strides 2 to 32, normalised over channels."""
        maps = [
            self.encoder1(x),
            self.encoder2(stages[0]),
            self.encoder3(stages[1]),
            self.encoder4(stages[2]),
            self.encoder10(stages[4]),
        ]
        return maps if self.levels == "encoder" else self._decode(maps, stages[3])

    def _decode(self, maps: list[Tensor], coarsest_skip: Tensor) -> list[Tensor]:
        *skips, x = maps
        pyramid = [x]
        for stage, skip in zip(self._decoder_stages(), [coarsest_skip, *reversed(skips)], strict=True):
            x = stage(x, skip)
            pyramid.append(x)
        return pyramid[::-1]

    def _decoder_stages(self) -> list[nn.Module]:
        return [self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1]


class SixCellMerging(nn.Module):
    """Patch merging as in MONAI before 1.5: of 2x2x2 cells it reads two twice, (0, 1, 0) and (0, 0, 1), and two never.

    Published SwinUNETR weights were trained with it. MONAI 1.5 reads all eight.

    Args:
        layer: The layer of MONAI, whose parameters this one takes.
    """

    CELLS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.reduction, self.norm = layer.reduction, layer.norm

    def forward(self, x: Tensor) -> Tensor:
        """Map cells (B, Z, Y, X, C), even numbers along the axes, to (B, Z / 2, Y / 2, X / 2, 2 C)."""
        merged: Tensor = self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.CELLS], -1)))
        return merged


class SwinUNETR(SegmentationNetwork):
    """`SwinPyramid` with MONAI's single segmentation layer.

    Plans name it as "nnssl.networks.swin.SwinUNETR". With deep supervision the result is a list of the one output, and
    nnU-Net's loss is 8/15 of the plain one (the weight of the finest of its five scales). MONAI calls the entries of
    the state dict as `nnssl.networks.monai_parts.monai_name` says. 145 of the 167 are those of a VoCo student, without
    `backbone.` (methods.md 2.5).
    """

    single_output = True

    @staticmethod
    def pyramid(input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], **arguments: Any) -> SwinPyramid:
        """Build `SwinPyramid`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, 6)
        return SwinPyramid(input_channels, levels=levels, **arguments)


def _check_widths(feature_size: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    if len(depths) != 4 or len(num_heads) != 4:
        raise UserError("SwinUNETR has four stages; give four numbers for `depths` and for `num_heads`")
    if any(feature_size * 2**i % heads for i, heads in enumerate(num_heads)):
        raise UserError(f"a feature_size of {feature_size} cannot be divided among {list(num_heads)} attention heads; "
                        f"use a multiple of 12 with 3, 6, 12 and 24 heads")  # fmt: skip


def _check_choices(axes: str, merging: str) -> None:
    if axes not in ("zyx", "xyz") or merging not in ("monai", "six_cells"):
        raise UserError(f"SwinUNETR takes axes zyx or xyz and merging monai or six_cells, not {axes} and {merging}; "
                        f"mend the plans' architecture")  # fmt: skip


def _turned_mask(mask: BlockMask) -> BlockMask:
    """The mask of volumes whose axes are reversed."""
    hidden = mask.hidden.transpose(1, 3)
    return BlockMask(hidden, (~hidden).flatten(1).nonzero()[:, 1].view(len(hidden), -1))


def _transformer(merging: str, **arguments: Any) -> Any:
    (kind,) = import_monai("SwinUNETR", "monai.networks.nets.swin_unetr", "SwinTransformer")
    with _LinspaceOnCpu():
        transformer = kind(patch_size=(2, 2, 2), downsample="merging", **arguments)
    fuse_windows(transformer)
    if merging == "six_cells":
        for number in range(1, 5):
            (layer,) = getattr(transformer, f"layers{number}")
            layer.downsample = SixCellMerging(layer.downsample)
    return transformer


def _block(kind: Any, in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    sizes = {"kernel_size": 3} if options else {"kernel_size": 3, "stride": 1}
    block: nn.Module = kind(3, in_channels, out_channels, norm_name="instance", res_block=True, **sizes, **options)
    return block


class _LinspaceOnCpu(TorchFunctionMode):
    """MONAI reads the rates of its stochastic depth from a tensor, which is impossible on the device "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **changed})

"""nnFormer (Zhou et al., arXiv 2109.03201) as a feature pyramid, and as a segmentation network that plans can name.

Its windows, attention and feed-forward layers are MONAI's; where the paper leaves a choice, the shapes are those of
Alice's network (methods.md 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.nnformer_blocks import Embedding, Lowering, Raising, SkipAttentionBlock, last_norm
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride, cropped, padded_to_multiple
from nnssl.networks.window_attention import fuse_windows

WIDTHS, HEADS, DEPTHS, WINDOWS = (48, 96, 192, 384), (6, 12, 24, 48), (2, 2, 2, 2), (4, 4, 8, 4)
DROP_PATH = 0.2  # rate of the last block of the encoder; it rises linearly


class NNFormerPyramid(FeaturePyramid):
    """The maps of an nnFormer, at strides 2, 4, 8 and 16.

    Convolutions embed the volume. Each stage of the encoder is a number of blocks of attention within windows, every
    other one with shifted windows, and a convolution of stride 2 leads to the next stage. Encoder levels are the
    normalised outputs of the stages. A stage of the decoder raises the coarser map by a transposed convolution, asks
    the encoder's map of its size by attention within windows (skip attention: queries from the decoder, keys and values
    from the encoder), and goes on with blocks as in the encoder. Decoder levels are the outputs of its stages and the
    coarsest map of the encoder. A volume of any size is taken: it is padded with zeros, and cells beyond it are cut
    off.

    Args:
        input_channels: Number of channels of the image.
        widths: Number of channels of each level, doubling.
        num_heads: Number of attention heads of each stage.
        depths: Number of blocks of each stage; decoder stages have as many.
        windows: Side of the attention windows of each stage, in cells.
        drop_path: Rate of stochastic depth at the end of the encoder.
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        widths: Sequence[int] = WIDTHS,
        num_heads: Sequence[int] = HEADS,
        depths: Sequence[int] = DEPTHS,
        windows: Sequence[int] = WINDOWS,
        drop_path: float = DROP_PATH,
        levels: Levels = "encoder",
    ) -> None:
        _check_numbers(widths, num_heads, depths, windows)
        strides: list[Stride] = [(2 ** (level + 1),) * 3 for level in range(len(widths))]
        super().__init__(widths, strides, input_channels)
        self.levels = levels
        self.mask_unit = strides[-1]
        (layer,) = import_monai("nnFormer", "monai.networks.nets.swin_unetr", "BasicLayer")
        rates = [drop_path * number / max(sum(depths) - 1, 1) for number in range(sum(depths))]
        rates_of = [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]

        def blocks(stage: int, rates: list[float]) -> nn.Module:
            made: nn.Module = layer(
                dim=widths[stage], depth=len(rates), num_heads=num_heads[stage], window_size=(windows[stage],) * 3,
                drop_path=rates, qkv_bias=True,
            )  # fmt: skip
            return made

        self.embedding = Embedding(input_channels, widths[0])
        self.stages = nn.ModuleList(blocks(stage, rates_of[stage]) for stage in range(len(widths)))
        self.lowering = nn.ModuleList(Lowering(width) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        above = range(len(widths) - 1)
        self.decoder_raising = nn.ModuleList(Raising(widths[stage]) for stage in above)
        self.decoder_skips = nn.ModuleList(
            SkipAttentionBlock(widths[stage], num_heads[stage], windows[stage], rates_of[stage][0]) for stage in above
        )
        self.decoder_stages = nn.ModuleList(_after_skip(blocks(stage, rates_of[stage])) for stage in above)
        fuse_windows(self)
        if levels == "encoder":
            self.unused = ("decoder_raising.", "decoder_skips.", "decoder_stages.")
            for part in (self.decoder_raising, self.decoder_skips, self.decoder_stages):
                part.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X) to its levels, finest first; level l has ceil(size / stride) cells."""
        size = x.shape[2:]
        x = self.embedding(padded_to_multiple(x, self.strides[-1]))
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(last_norm(self.norms[number], x))
            if number < len(self.lowering):
                x = self.lowering[number](x)
        if self.levels == "decoder":
            for number in reversed(range(len(self.decoder_raising))):
                raised = self.decoder_raising[number](maps[number + 1])
                maps[number] = self.decoder_stages[number](self.decoder_skips[number](raised, maps[number]))
        return [cropped(m, [-(-n // s) for n, s in zip(size, stride, strict=True)])
                for m, stride in zip(maps, self.strides, strict=True)]  # fmt: skip

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Layer normalisation does."""
        return True


class NNFormer(SegmentationNetwork):
    """`NNFormerPyramid` with a transposed convolution on each level above the coarsest, to logits at twice its size.

    Plans name it as "nnssl.networks.nnformer.NNFormer". With deep supervision there are outputs at strides 1, 2 and 4.
    9,725,715 parameters with one channel and one output; Alice's code has 48 more, a token that it never uses.
    """

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool = False, **architecture: Any
    ) -> None:
        super().__init__(input_channels, num_classes, deep_supervision, **architecture)
        self.decoder.seg_layers = nn.ModuleList(
            nn.ConvTranspose3d(width, num_classes, 2, stride=2) for width in reversed(self.backbone.channels[:-1])
        )

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], **arguments: Any
    ) -> NNFormerPyramid:
        """Build `NNFormerPyramid`, see `SegmentationNetwork.pyramid`; `strides` begin with 1 for the finest output."""
        check_strides(strides, len(arguments.get("widths", WIDTHS)))
        return NNFormerPyramid(input_channels, levels=levels, **arguments)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of an image, as `SegmentationNetwork`; any size is taken."""
        outputs = super().forward(x)
        if isinstance(outputs, list):  # as nnU-Net sizes its targets
            return [cropped(y, [round(n / 2**level) for n in x.shape[2:]]) for level, y in enumerate(outputs)]
        return cropped(outputs, x.shape[2:])


def _after_skip(stage: Any) -> nn.Module:
    """A stage without its first block, whose place the skip attention has: the first that is left is shifted."""
    del stage.blocks[0]
    return stage  # type: ignore[no-any-return]


def _check_numbers(
    widths: Sequence[int], num_heads: Sequence[int], depths: Sequence[int], windows: Sequence[int]
) -> None:
    if len({len(widths), len(num_heads), len(depths), len(windows)}) > 1 or len(widths) < 2:
        raise UserError("nnFormer needs as many `widths` as `num_heads`, `depths` and `windows`, two or more; mend the "
                        "plans' architecture")  # fmt: skip
    if any(b != 2 * a for a, b in pairwise(widths)) or widths[0] % 2:
        raise UserError(f"nnFormer's `widths` double from stage to stage, from an even number on, and {list(widths)} "
                        f"do not; mend the plans' architecture")  # fmt: skip
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise UserError(f"widths of {list(widths)} cannot be divided among {list(num_heads)} attention heads; use for "
                        f"example 6, 12, 24, 48 heads with 48, 96, 192, 384")  # fmt: skip
    if min(depths) < 2:
        raise UserError(f"nnFormer's stages have two or more blocks, not {list(depths)}; mend the plans' architecture")

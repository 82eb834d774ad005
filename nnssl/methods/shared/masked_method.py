"""Base of masked image modelling (MAE, Alice): hidden blocks, encoder, light decoder, reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.sending import send
from nnssl.methods.base import Batch, at_least, formerly
from nnssl.methods.panel import Panel
from nnssl.methods.shared.block_tokens import BlockTokens, LightDecoder
from nnssl.methods.shared.hidden_blocks import (
    HiddenBlocks,
    HiddenBlocksConfig,
    blocks_inside,
    slice_panel,
    value_range,
    visible_blocks,
    visible_voxels,
)
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, assemble_blocks, block_view


def to_blocks(volumes: Tensor, block: Sequence[int]) -> Tensor:
    """Cut volumes (B, C, Z, Y, X) into blocks: (B, N, V), the last axis fastest; V = voxels of a block times C."""
    return block_view(volumes, block).movedim(4, -1).flatten(4).flatten(1, 3)


def from_blocks(rows: Tensor, block: Sequence[int], size: Sequence[int]) -> Tensor:
    """Assemble blocks (B, N, V) to volumes (B, C, *size): the inverse of `to_blocks`."""
    grid = [extent // step for extent, step in zip(size, block, strict=True)]
    return assemble_blocks(rows.reshape(len(rows), *grid, *block, -1).movedim(-1, 4))


_EPS = 1e-6  # under the root, for blocks of one value


def normalised_blocks(blocks: Tensor) -> Tensor:
    """The target of the prediction: (x - mean) / sqrt(unbiased variance + 1e-6) for each block.

    Args:
        blocks: (..., V) floating; half precisions are cast up to float32 first.

    Returns:
        The same shape; a block of one value becomes 0.
    """
    wide = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, keepdim=True)
    return (wide - mean) / (variance + _EPS).sqrt()


def masked_mse(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the blocks that count, for every crop (Alice, eq. 1).

    Args:
        prediction: (B, N, V) of N blocks; half precisions are cast up.
        target: (B, N, V).
        counted: (B, N) bool, the hidden blocks.

    Returns:
        (B,) mean errors of the crops; exactly 0, with a gradient of 0, for a crop without a block that counts.
    """
    error = (prediction.to(target.dtype) - target).square().mean(dim=-1)
    weight = counted.to(error.dtype)
    return (error * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


_SHOWN = 4  # volumes of the pictures


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(HiddenBlocksConfig):
    """Hyper-parameters of masking and decoder; [P] is from Alice's paper, [C] from its code, [D] ours."""

    num_epochs: int = 1000  # x 100 steps = 100,000 steps [P]
    steps_per_epoch: int = 100
    optimiser: Literal["adam", "adamw", "sgd", "nesterov"] = "adamw"  # [P]
    betas: tuple[float, float] = (0.9, 0.95)  # [P]
    learning_rate: float = 5e-5  # [P]
    weight_decay: float = 0.05  # MAE's [D]
    schedule: Literal["constant", "cosine", "poly"] = "cosine"  # [P]
    warmup_steps: int = 3100  # 100 epochs of 2,000 volumes at 64 a step [P]. A short run needs fewer.
    # of convolutional encoders: visible voxels alone; false: zeros in hidden ones. ViT and Swin discard tokens. [D]
    sparse: bool = formerly(False, True)
    token_width: int = 384  # of the blocks' tokens; a ViT has its own [D]
    decoder_width: int = 384  # [D]
    decoder_depth: int = 4  # [D]; "light" [P]
    decoder_heads: int = 6  # [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "token_width", "decoder_width", "decoder_depth", "decoder_heads")
        if self.decoder_width % self.decoder_heads:
            raise UserError(f"decoder_heads={self.decoder_heads} must divide decoder_width={self.decoder_width}")


class MaskedMethod(HiddenBlocks):
    """Encoder of the visible blocks and decoder of all blocks."""

    levels: ClassVar[Literal["encoder", "decoder"]] = "encoder"
    config: MaskedConfig

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__(backbone, config)
        self.tokens = BlockTokens(backbone, config.token_width)
        values = prod(self.block) * backbone.input_channels
        self.decoder = LightDecoder(
            self.tokens.width, values, config.decoder_width, config.decoder_depth, config.decoder_heads
        )

    @classmethod
    def check(cls, config: Any, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse to hide all blocks."""
        super().check(config, backbone)
        cls.check_masks(config, backbone)

    @property
    def normalises(self) -> bool:
        """Whether blocks are normalised before they are predicted."""
        return True

    def augment(self, batch: Batch) -> Batch:
        """Add `hidden` and `inside` (B, K, *grid): the masked blocks, and those that are not only padding.

        `hidden_on_host` is `hidden` on the host.
        """
        starts, sizes = (batch[name].numpy().reshape(-1, 3) for name in ("starts", "sizes"))
        hidden = self.draw_masks(batch)
        inside = [
            blocks_inside(start, size, self.config.patch, self.block) for start, size in zip(starts, sizes, strict=True)
        ]
        shown = torch.from_numpy(np.stack(inside)).view_as(hidden)
        masks = send([hidden, shown], batch["crops"].device)
        return {**batch, **dict(zip(("hidden", "inside"), masks, strict=True)), "hidden_on_host": hidden}

    def encode(self, crops: Tensor, hidden: Tensor, hidden_on_host: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens of the visible blocks and decoded tokens of all blocks.

        Args:
            crops: (M, C, *P).
            hidden: (M, *grid) bool.
            hidden_on_host: The same on the host; None: it is copied, for which the host waits.

        Returns:
            (M, n, w) and (M, N, decoder_width).
        """
        return in_parts(
            self._encode,
            self.config.accumulate,
            crops,
            hidden,
            hidden.cpu() if hidden_on_host is None else hidden_on_host,
        )

    def _encode(self, crops: Tensor, hidden: Tensor, hidden_on_host: Tensor) -> tuple[Tensor, Tensor]:
        layers = prod(self.grid) // prod(self.maskable(list(self.grid), self.config))
        mask = BlockMask(hidden, visible_blocks(hidden, self.config.mask_ratio, layers), hidden_on_host)
        tokens = self.tokens(self.backbone, crops, self.grid, mask, self.config.sparse)
        visible = tokens.gather(1, mask.visible[..., None].expand(-1, -1, tokens.shape[-1]))
        return visible, self.decoder(visible, mask.visible, self.grid)

    def reconstruction_error(self, crops: Tensor, decoded: Tensor, counted: Tensor) -> Tensor:
        """Mean squared error (M,) of the blocks of crops (M, C, *P) that count (M, *grid), from decoded tokens."""
        blocks = to_blocks(crops, self.block)
        target = normalised_blocks(blocks) if self.normalises else blocks
        return masked_mse(self.decoder.predict(decoded), target, counted.flatten(1))

    @torch.no_grad()
    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """For up to four crops: the crop, its visible blocks, and these with the network's output in the gaps.

        Predicted blocks get the mean and deviation of the true ones, which the network does not predict.
        """
        crops = batch["crops"][:_SHOWN]
        masks, on_host = (batch[name][:_SHOWN].flatten(0, 1) for name in ("hidden", "hidden_on_host"))
        flat = crops.flatten(0, 1).float()
        _, decoded = self.encode(flat.to(crops.dtype), masks, on_host)
        predicted, blocks = self.decoder.predict(decoded).float(), to_blocks(flat, self.block)
        if self.normalises:
            variance, mean = torch.var_mean(blocks, dim=-1, keepdim=True)
            predicted = predicted * (variance + _EPS).sqrt() + mean
        filled = from_blocks(torch.where(masks.flatten(1)[..., None], predicted, blocks), self.block, flat.shape[2:])
        seen = visible_voxels(flat, masks)
        shape = crops.shape[:2]
        images = [x.unflatten(0, shape).cpu().numpy() for x in (flat, seen, filled)]
        names = ("crop", "visible", "filled (true block means)" if self.normalises else "filled")
        return [
            [
                slice_panel(image[i, k, 0], f"{_named(i, k, shape[1])}: {name}",
                            values=value_range(images[0][i, k, 0]))
                for image, name in zip(images, names, strict=True)
            ]
            for i in range(shape[0])
            for k in range(shape[1])
        ][:_SHOWN]  # fmt: skip


def _named(sample: int, crop: int, crops: int) -> str:
    """How a title calls a crop."""
    return f"volume {sample + 1}" + (f", crop {crop + 1}" if crops > 1 else "")

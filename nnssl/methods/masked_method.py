"""What masked image modelling methods share (MAE, Alice): hidden blocks, encoder, light decoder, reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from nnssl.errors import UserError
from nnssl.losses.mae import masked_mse, normalised_blocks
from nnssl.methods.base import Batch, Method, MethodConfig, Panel, at_least
from nnssl.methods.masking import blocks_inside, draw_mask, from_blocks, hidden_count, to_blocks, visible_blocks
from nnssl.networks.block_tokens import BlockTokens, LightDecoder, block_size
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, spread

_SHOWN = 4  # volumes of the pictures
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(MethodConfig):
    """Hyper-parameters of masking and decoder; [P] stands in Alice's paper, [C] in its code, [D] was decided here."""

    num_epochs: int = 1000  # x 100 steps = 100,000 steps [P]
    steps_per_epoch: int = 100
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"  # [P]
    betas: tuple[float, float] = (0.9, 0.95)  # [P]
    learning_rate: float = 5e-5  # [P]
    weight_decay: float = 0.05  # MAE's [D]
    schedule: Literal["constant", "cosine"] = "cosine"  # [P]
    warmup_steps: int = 10_000  # 100 epochs [P]. A short run needs fewer.
    mask_ratio: float = 0.75  # [P] [C]
    mask_block: tuple[int, int, int] | None = None  # (Z, Y, X) voxels; None: about 16, see `block_size` [D]
    token_width: int = 384  # of the blocks' tokens; a ViT has its own [D]
    decoder_width: int = 384  # [D]
    decoder_depth: int = 4  # [D]; "light" [P]
    decoder_heads: int = 6  # [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_block", "token_width", "decoder_width", "decoder_depth", "decoder_heads"):
            at_least(self, name, 1)
        if not 0 <= self.mask_ratio < 1:
            raise UserError(f"mask_ratio has to be at least 0 and below 1, not {self.mask_ratio}")
        if self.decoder_width % self.decoder_heads:
            raise UserError(f"decoder_heads={self.decoder_heads} has to divide decoder_width={self.decoder_width}")


class MaskedMethod(Method):
    """Encoder of the visible blocks and decoder of all of them. Samples hold K crops each; a subclass takes them.

    What a sample needs: `crops` (K, C, *P), `mask_seeds` (K,), `starts` (K, 3) and `sizes` (K, 3) of the volumes.
    """

    levels: ClassVar[Literal["encoder", "decoder"]] = "encoder"
    host_keys = frozenset({"mask_seeds", "starts", "sizes"})
    crops_per_sample: ClassVar[int] = 1
    config: MaskedConfig

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__(backbone, config)
        patch = cast(tuple[int, int, int], config.patch_size)
        self.block = block_size(backbone, patch, config.mask_block)
        self.grid = tuple(size // step for size, step in zip(patch, self.block, strict=True))
        self.tokens = BlockTokens(backbone, config.token_width)
        values = prod(self.block) * backbone.input_channels
        self.decoder = LightDecoder(
            self.tokens.width, values, config.decoder_width, config.decoder_depth, config.decoder_heads
        )

    @classmethod
    def check(cls, config: Any, backbone: FeaturePyramid) -> None:
        """As for every method; some block has to be visible, and some hidden unless the ratio is 0."""
        backbone.check_patch(config.patch_size, int(config.batch_size or 0) * cls.crops_per_sample)
        block = block_size(backbone, config.patch_size, config.mask_block)
        maskable = cls.maskable([size // step for size, step in zip(config.patch_size, block, strict=True)], config)
        if hidden_count(prod(maskable), config.mask_ratio) == prod(maskable):
            raise UserError(f"a mask_ratio of {config.mask_ratio} hides all {prod(maskable)} blocks of the patch; set "
                            f"a larger -o patch_size=..., a smaller mask_block=... or mask_ratio=0.5")  # fmt: skip

    @classmethod
    def maskable(cls, grid: list[int], config: Any) -> list[int]:
        """The grid (Z, Y, X) that masks are drawn on; an axis of 1 is hidden or visible as a whole."""
        return grid

    @property
    def normalises(self) -> bool:
        """Whether blocks are normalised before they are predicted."""
        return True

    def augment(self, batch: Batch) -> Batch:
        """Add `hidden` and `inside` (B, K, *grid): what is masked, and which blocks are not padding alone."""
        seeds, starts, sizes = (batch[name].numpy() for name in ("mask_seeds", "starts", "sizes"))
        patch = cast(tuple[int, int, int], self.config.patch_size)
        drawn_on = self.maskable(list(self.grid), self.config)
        hidden = [
            np.broadcast_to(draw_mask(np.random.default_rng(int(s)), drawn_on, self.config.mask_ratio), self.grid)
            for s in seeds.flat
        ]
        inside = [
            blocks_inside(start, size, patch, self.block)
            for start, size in zip(starts.reshape(-1, 3), sizes.reshape(-1, 3), strict=True)
        ]
        shape, device = (*seeds.shape, *self.grid), batch["crops"].device
        masks = {"hidden": hidden, "inside": inside}
        return {**batch, **{k: torch.from_numpy(np.stack(v)).view(shape).to(device) for k, v in masks.items()}}

    def encode(self, crops: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the visible blocks and decoded tokens of all blocks.

        Args:
            crops: (M, C, *P).
            hidden: (M, *grid) bool.

        Returns:
            (M, n, w) and (M, N, decoder_width).
        """
        layers = prod(self.grid) // prod(self.maskable(list(self.grid), self.config))
        mask = BlockMask(hidden, visible_blocks(hidden, self.config.mask_ratio, layers))
        tokens = self.tokens(self.backbone, crops, self.grid, mask)
        visible = tokens.gather(1, mask.visible[..., None].expand(-1, -1, tokens.shape[-1]))
        return visible, self.decoder(visible, mask.visible, self.grid)

    def reconstruction_error(self, crops: Tensor, decoded: Tensor, counted: Tensor) -> Tensor:
        """Mean squared error (M,) of the blocks of crops (M, C, *P) that count (M, *grid), from decoded tokens."""
        blocks = to_blocks(crops, self.block)
        target = normalised_blocks(blocks) if self.normalises else blocks
        return masked_mse(self.decoder.predict(decoded), target, counted.flatten(1))

    @torch.no_grad()
    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """For up to four volumes: every crop, what is visible of it, and with the network's output in the gaps.

        The predicted blocks get the mean and the deviation of the true ones, which the network is not asked for.
        """
        crops, hidden = batch["crops"][:_SHOWN], batch["hidden"][:_SHOWN]
        flat, masks = crops.flatten(0, 1).float(), hidden.flatten(0, 1)
        _, decoded = self.encode(flat.to(crops.dtype), masks)
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
                slice_panel(image[i, k, 0], f"volume {i + 1}: {name}", values=value_range(images[0][i, k, 0]))
                for k in range(shape[1])
                for image, name in zip(images, names, strict=True)
            ]
            for i in range(shape[0])
        ]


def visible_voxels(crops: Tensor, hidden: Tensor) -> Tensor:
    """Crops (M, C, *P) with 0 in hidden blocks (M, *grid)."""
    return crops.masked_fill(spread(hidden, crops.shape[2:]), 0)


def slice_panel(
    crop: np.ndarray, title: str, points: tuple[tuple[int, float, float], ...] = (),
    values: tuple[float, float] | None = None,
) -> Panel:  # fmt: skip
    """The middle slice of a crop (Z, Y, X)."""
    return Panel(crop[len(crop) // 2], title, points, values=values)


def value_range(crop: np.ndarray) -> tuple[float, float]:
    """Least and largest value of the middle slice of a crop (Z, Y, X)."""
    middle = crop[len(crop) // 2]
    return float(middle.min()), float(middle.max())

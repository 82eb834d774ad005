"""Base of masked image modelling (MAE, Alice): hidden blocks, encoder, light decoder, reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.geometry import Integers
from nnssl.methods.base import Batch, Method, MethodConfig, Panel, at_least, below_one
from nnssl.methods.shared.block_tokens import BlockTokens, LightDecoder, block_size
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, assemble_blocks, block_view, spread


def hidden_count(blocks: int, ratio: float) -> int:
    """Number of hidden blocks: ceil(ratio * blocks), without rounding errors such as 0.75 * 4 above 3."""
    return ceil(round(ratio * blocks, 6))


def draw_mask(rng: np.random.Generator, grid: Sequence[int], ratio: float) -> NDArray[np.bool_]:
    """Hide a fixed number of random blocks.

    Args:
        rng: source of the draw.
        grid: blocks along each axis.
        ratio: hidden share, in [0, 1).

    Returns:
        (*grid) bool, True where hidden; `hidden_count` of them are.
    """
    blocks = prod(grid)
    hidden = np.zeros(blocks, dtype=bool)
    hidden[rng.choice(blocks, hidden_count(blocks, ratio), replace=False, shuffle=False)] = True
    return hidden.reshape(tuple(grid))


def blocks_inside(
    start: Sequence[int] | Integers, size: Sequence[int] | Integers, patch: Sequence[int], block: Sequence[int]
) -> NDArray[np.bool_]:
    """Which blocks of a crop contain voxels of the volume, and not only padding.

    Args:
        start: (3,) first voxel of the crop, which may be negative.
        size: (3,) voxels of the volume.
        patch: (3,) voxels of the crop.
        block: (3,) voxels of a block.

    Returns:
        (*patch // block) bool.
    """
    lines = []
    for first, whole, extent, step in zip(start, size, patch, block, strict=True):
        begin = first + np.arange(0, extent, step)
        lines.append((begin < whole) & (begin + step > 0))
    z, y, x = lines
    return z[:, None, None] & y[None, :, None] & x[None, None, :]


def to_blocks(volumes: Tensor, block: Sequence[int]) -> Tensor:
    """Cut volumes (B, C, Z, Y, X) into blocks: (B, N, V), the last axis fastest; V = voxels of a block times C."""
    return block_view(volumes, block).movedim(4, -1).flatten(4).flatten(1, 3)


def from_blocks(rows: Tensor, block: Sequence[int], size: Sequence[int]) -> Tensor:
    """Assemble blocks (B, N, V) to volumes (B, C, *size): the inverse of `to_blocks`."""
    grid = [extent // step for extent, step in zip(size, block, strict=True)]
    return assemble_blocks(rows.reshape(len(rows), *grid, *block, -1).movedim(-1, 4))


def visible_blocks(hidden: Tensor, ratio: float, layers: int = 1) -> Tensor:
    """Numbers of the blocks that are not hidden, in ascending order.

    Args:
        hidden: (B, *grid) bool from `draw_mask`; its known number of hidden blocks saves a wait for the device.
        ratio: hidden share.
        layers: number of blocks that are hidden or visible together, such as those of a column.

    Returns:
        (B, n) integers.
    """
    flat = hidden.flatten(1)
    units = flat.shape[1] // layers
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : layers * (units - hidden_count(units, ratio))]


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
class MaskedConfig(MethodConfig):
    """Hyper-parameters of masking and decoder; [P] is from Alice's paper, [C] from its code, [D] ours."""

    num_epochs: int = 1000  # x 100 steps = 100,000 steps [P]
    steps_per_epoch: int = 100
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"  # [P]
    betas: tuple[float, float] = (0.9, 0.95)  # [P]
    learning_rate: float = 5e-5  # [P]
    weight_decay: float = 0.05  # MAE's [D]
    schedule: Literal["constant", "cosine"] = "cosine"  # [P]
    warmup_steps: int = 3100  # 100 epochs of 2,000 volumes at 64 a step [P]. A short run needs fewer.
    mask_ratio: float = 0.75  # [P] [C]
    mask_block: tuple[int, int, int] | None = None  # (Z, Y, X) voxels; None: about 16, see `block_size` [D]
    token_width: int = 384  # of the blocks' tokens; a ViT has its own [D]
    decoder_width: int = 384  # [D]
    decoder_depth: int = 4  # [D]; "light" [P]
    decoder_heads: int = 6  # [D]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "mask_block", "token_width", "decoder_width", "decoder_depth", "decoder_heads")
        below_one(self, "mask_ratio")
        if self.decoder_width % self.decoder_heads:
            raise UserError(f"decoder_heads={self.decoder_heads} must divide decoder_width={self.decoder_width}")


class MaskedMethod(Method):
    """Encoder of the visible blocks and decoder of all blocks.

    Subclasses draw samples of K crops: `crops` (K, C, *P), `mask_seeds` (K,), `starts` (K, 3), and the volumes' `sizes`
    (K, 3).
    """

    levels: ClassVar[Literal["encoder", "decoder"]] = "encoder"
    host_keys = frozenset({"mask_seeds", "starts", "sizes"})
    crops_per_sample: ClassVar[int] = 1
    config: MaskedConfig

    def __init__(self, backbone: FeaturePyramid, config: Any) -> None:
        super().__init__(backbone, config)
        patch = config.patch
        self.block = block_size(backbone, patch, config.mask_block)
        self.grid = tuple(size // step for size, step in zip(patch, self.block, strict=True))
        self.tokens = BlockTokens(backbone, config.token_width)
        values = prod(self.block) * backbone.input_channels
        self.decoder = LightDecoder(
            self.tokens.width, values, config.decoder_width, config.decoder_depth, config.decoder_heads
        )

    @classmethod
    def check(cls, config: Any, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse to hide all blocks."""
        backbone.check_patch(config.patch, config.volumes * cls.crops_per_sample)
        block = block_size(backbone, config.patch_size, config.mask_block)
        maskable = cls.maskable([size // step for size, step in zip(config.patch_size, block, strict=True)], config)
        if hidden_count(prod(maskable), config.mask_ratio) == prod(maskable):
            raise UserError(f"a mask_ratio of {config.mask_ratio} hides all {prod(maskable)} blocks of the patch; set "
                            f"a larger -o patch_size=..., a smaller mask_block=... or mask_ratio=0.5")  # fmt: skip

    @classmethod
    def maskable(cls, grid: list[int], config: Any) -> list[int]:
        """The grid (Z, Y, X) for drawing masks; an axis of 1 is hidden or visible as a whole."""
        return grid

    @property
    def normalises(self) -> bool:
        """Whether blocks are normalised before they are predicted."""
        return True

    def augment(self, batch: Batch) -> Batch:
        """Add `hidden` and `inside` (B, K, *grid): the masked blocks, and those that are not only padding."""
        seeds, starts, sizes = (batch[name].numpy() for name in ("mask_seeds", "starts", "sizes"))
        patch = self.config.patch
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
        """For up to four volumes: every crop, its visible blocks, and these with the network's output in the gaps.

        Predicted blocks get the mean and deviation of the true ones, which the network does not predict.
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

"""Dense MAE: a whole U-Net with skip connections fills in the hidden blocks of a crop.

He et al. (CVPR 2022) in the form that masked pretraining of 3D U-Nets is published in: three quarters of the blocks
become 0, the network predicts intensities, and the error of the hidden voxels is the loss. Encoder and decoder are
pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.core.sending import send
from nnssl.methods.base import Batch, Sample, StepOutput, Volume
from nnssl.methods.panel import Panel
from nnssl.methods.shared.hidden_blocks import (
    HiddenBlocks,
    HiddenBlocksConfig,
    masked_crop_panels,
    sample_masked_crop,
    slice_panel,
    value_range,
    visible_voxels,
)
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.shared.spatial import SPATIAL_KEYS, SpatialConfig, apply_spatial, sample_spatial
from nnssl.methods.unet_mae.densify import Densify
from nnssl.networks.pyramid import FeaturePyramid, format_size, spread
from nnssl.networks.sparse import HiddenCells, visible_only
from nnssl.networks.unet import UNetPyramid

_SHOWN = 4  # volumes of the pictures


@dataclass(frozen=True, kw_only=True)
class UnetMaeConfig(SpatialConfig, HiddenBlocksConfig):
    """Hyper-parameters of dense MAE; [P] is from the published recipe for 3D U-Nets, [D] our decision.

    Batch and patch are the plans'; the recipe has 8 volumes a step with patches of 160^3.
    """

    num_epochs: int = 1000  # x 250 steps [P]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd", "nesterov"] = "nesterov"  # [P]
    learning_rate: float = 1e-2  # [P]
    momentum: float = 0.99  # [P]
    weight_decay: float = 3e-5  # [P]
    schedule: Literal["constant", "cosine", "poly"] = "poly"  # [P]
    gradient_clip: float | None = 12.0  # [P]
    sparse: bool = False  # encode visible voxels alone, and fill the gaps of every level before the decoder


class UnetMae(HiddenBlocks):
    """One crop of a volume, and the mean squared error of its hidden voxels."""

    config_class = UnetMaeConfig
    collapses = False  # the embeddings are means of maps, which are alike in a network that fills blocks well too
    learns_from = "filling in the hidden blocks of a crop with the whole network"
    levels = "decoder"
    host_keys = frozenset({*HiddenBlocks.host_keys, "spacing", *SPATIAL_KEYS})
    config: UnetMaeConfig

    def __init__(self, backbone: FeaturePyramid, config: UnetMaeConfig) -> None:
        super().__init__(backbone, config)
        self.head = nn.Conv3d(backbone.channels[0], backbone.input_channels, 1)
        self.densify = Densify(backbone.channels) if config.sparse else None

    @classmethod
    def check(cls, config: UnetMaeConfig, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse networks whose finest map is too coarse, or that `sparse` does not fit."""
        super().check(config, backbone)
        cls.check_masks(config, backbone)
        if backbone.strides[0] != (1, 1, 1):
            raise UserError(f"unet_mae predicts every voxel, and the finest map of this network has a stride of "
                            f"{format_size(backbone.strides[0])}; use plans with a U-Net, or -m mae")  # fmt: skip
        if config.sparse and not isinstance(backbone, UNetPyramid):
            raise UserError("sparse=true of unet_mae needs one of nnU-Net's U-Nets; leave it out, or use other plans")

    @classmethod
    def sample(cls, volume: Volume, config: UnetMaeConfig, rng: np.random.Generator) -> Sample:
        """As of `sample_masked_crop`, with `spacing` (1, 3) in mm and the parameters of the augmentation."""
        crop = sample_masked_crop(volume, config.patch, rng)
        spacing = np.array([volume.spacing], dtype=np.float32)
        return {**crop, "spacing": spacing, **sample_spatial(rng, 1, config)}

    def augment(self, batch: Batch) -> Batch:
        """Augment the crops; add `hidden` (B, 1, *grid) bool and `inside` (B, 1, 1, *P) bool, the voxels not padded."""
        crops = batch["crops"]
        (hidden,) = send([self.draw_masks(batch)], crops.device)
        parameters = {name: batch[name].flatten(0, 1) for name in SPATIAL_KEYS}
        spacing, starts, sizes = (batch[name].flatten(0, 1) for name in ("spacing", "starts", "sizes"))
        augmented, inside = apply_spatial(crops.flatten(0, 1), spacing, parameters, starts, sizes)
        kept = {"starts": batch["starts"]}  # of the pictures
        return {"crops": augmented.view_as(crops), "hidden": hidden, "inside": inside[:, None], **kept}

    def predict(self, crops: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Intensities (M, C, *P) of crops with hidden blocks (M, *grid), and the pooled coarsest map (M, d)."""
        return in_parts(self._predict, self.config.accumulate, crops, hidden)

    def _predict(self, crops: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        seen = visible_voxels(crops, hidden)
        if self.densify is None:
            pyramid = self.backbone(seen)
        else:
            network, cells = self.backbone, HiddenCells(hidden)
            assert isinstance(network, UNetPyramid)
            with visible_only(network, cells):
                levels = network.encode(seen)
            pyramid = network.decode(self.densify(levels, cells))
        return self.head(pyramid[0]), pyramid[-1].detach().flatten(2).mean(2)

    def step(self, batch: Batch) -> StepOutput:
        """Mean over the crops of the error of hidden voxels; the embeddings are the pooled coarsest maps."""
        crops, hidden = batch["crops"][:, 0], batch["hidden"][:, 0]
        predicted, pooled = self.predict(crops, hidden)
        counted = spread(hidden, crops.shape[2:]) & batch["inside"][:, 0]
        return StepOutput(hidden_mse(predicted, crops, counted).mean(), {}, pooled)

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Crops of up to four volumes, whole and masked."""
        return masked_crop_panels(batch["crops"][:_SHOWN, 0], batch["hidden"][:_SHOWN, 0])

    @torch.no_grad()
    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """For up to four volumes: the crop, its visible blocks, and these with the network's output in the gaps."""
        crops, hidden = batch["crops"][:_SHOWN, 0], batch["hidden"][:_SHOWN, 0]
        predicted = self.predict(crops, hidden)[0].float().cpu()
        crops, hidden = crops.float().cpu(), hidden.cpu()
        filled = torch.where(spread(hidden, crops.shape[2:]), predicted, crops).numpy()
        rows = masked_crop_panels(crops, hidden)
        for number, (row, image) in enumerate(zip(rows, filled, strict=True)):
            shown = value_range(crops[number, 0].numpy())
            row.append(slice_panel(image[0], f"volume {number + 1}: filled", values=shown, of=(number, 0)))
        return rows


def hidden_mse(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error of the voxels that count, in float32 or wider.

    Args:
        prediction: (M, C, *P).
        target: (M, C, *P).
        counted: (M, 1, *P) bool.

    Returns:
        (M,) errors of the crops; exactly 0, with a gradient of 0, for a crop without a voxel that counts.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.to(wide) - target.to(wide)).square() * counted
        voxels = counted.flatten(1).sum(1) * prediction.shape[1]
        return error.flatten(1).sum(1) / voxels.clamp(min=1)

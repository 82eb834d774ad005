"""MAE: masked autoencoding of volumes (He et al., CVPR 2022), the simple baseline in Alice's tables (methods.md 4).

Three quarters of the blocks of a crop are hidden, and a light decoder predicts them from the visible ones.
"""

from __future__ import annotations

import numpy as np

from nnssl.core.geometry import random_crop_start
from nnssl.methods.base import Batch, Panel, Sample, StepOutput, Volume
from nnssl.methods.shared.masked_method import MaskedConfig, MaskedMethod, slice_panel, value_range, visible_voxels


class MaskedAutoencoder(MaskedMethod):
    """One crop of a volume, and the mean squared error of its hidden blocks."""

    config_class = MaskedConfig

    @classmethod
    def sample(cls, volume: Volume, config: MaskedConfig, rng: np.random.Generator) -> Sample:
        """Draw a crop around a random voxel of the body and the seed of its mask, as arrays of `MaskedMethod`."""
        patch = np.asarray(config.patch_size)
        start = random_crop_start(rng, volume.random_body_voxel(rng), patch, volume.size)
        return {
            "crops": volume.read(start, start + patch)[None],
            "mask_seeds": rng.integers(0, 2**63, 1, dtype=np.int64),
            "starts": start[None],
            "sizes": volume.size[None],
        }

    def step(self, batch: Batch) -> StepOutput:
        """Error of the hidden blocks, averaged over the crops; the embeddings are the crops' mean visible tokens."""
        crops, hidden, inside = (batch[name].flatten(0, 1) for name in ("crops", "hidden", "inside"))
        visible, decoded = self.encode(crops, hidden)
        loss = self.reconstruction_error(crops, decoded, hidden & inside).mean()
        return StepOutput(loss, {}, visible.detach().mean(1))

    @classmethod
    def panels(cls, batch: Batch, config: MaskedConfig) -> list[list[Panel]]:
        """Crops of up to four volumes, whole and masked."""
        crops, hidden = batch["crops"][:4, 0], batch["hidden"][:4, 0]
        pairs = zip(crops.numpy(), visible_voxels(crops, hidden).numpy(), strict=True)
        return [
            [
                slice_panel(image[0], f"volume {i + 1}: {name}", values=value_range(crop[0]))
                for image, name in ((crop, "crop"), (seen, "visible"))
            ]
            for i, (crop, seen) in enumerate(pairs)
        ]

"""MAE: masked autoencoding of volumes (He et al., CVPR 2022), the simple baseline in Alice's tables (methods.md 4).

Three quarters of the blocks of a crop are hidden, and a light decoder predicts them from the visible ones.
"""

from __future__ import annotations

import numpy as np

from nnssl.methods.base import Batch, Sample, StepOutput, Volume
from nnssl.methods.panel import Panel
from nnssl.methods.shared.hidden_blocks import masked_crop_panels, sample_masked_crop
from nnssl.methods.shared.masked_method import MaskedConfig, MaskedMethod


class MaskedAutoencoder(MaskedMethod):
    """One crop of a volume, and the mean squared error of its hidden blocks."""

    config_class = MaskedConfig
    learns_from = "filling in the hidden blocks of a crop from the visible ones"

    @classmethod
    def sample(cls, volume: Volume, config: MaskedConfig, rng: np.random.Generator) -> Sample:
        """See `sample_masked_crop`."""
        return sample_masked_crop(volume, config.patch, rng)

    def step(self, batch: Batch) -> StepOutput:
        """Error of the hidden blocks, averaged over the crops; the embeddings are the crops' mean visible tokens."""
        crops, hidden, inside = (batch[name].flatten(0, 1) for name in ("crops", "hidden", "inside"))
        visible, decoded = self.encode(crops, hidden, batch["hidden_on_host"].flatten(0, 1))
        loss = self.reconstruction_error(crops, decoded, hidden & inside).mean()
        return StepOutput(loss, {}, visible.detach().mean(1))

    @classmethod
    def panels(cls, batch: Batch, config: MaskedConfig) -> list[list[Panel]]:
        """Crops of up to four volumes, whole and masked."""
        return masked_crop_panels(batch["crops"][:4, 0], batch["hidden"][:4, 0])

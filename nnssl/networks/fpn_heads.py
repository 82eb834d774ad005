"""The two segmentation heads of vox2vec's probing experiments, on the maps of `FPN3d`."""

from __future__ import annotations

from torch import Tensor, nn

from nnssl.networks.fpn import ResidualBlock, add_upsampled, pyramid_channels


class FPNLinearHead(nn.Module):
    """One linear classifier on the representation of each voxel, applied level by level (methods.md 1.5).

    The sum over levels of a 1x1x1 convolution, upsampled, equals a linear layer on the concatenated channels of the
    cells that contain the voxel, and never builds them at full resolution.

    Args:
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels.
        num_classes: Number of output channels.
    """

    def __init__(self, base_channels: int, num_scales: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv3d(channels, num_classes, 1, bias=level == 0)
            for level, channels in enumerate(pyramid_channels(base_channels, num_scales))
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Map the pyramid, finest first, to logits (B, num_classes, Z, Y, X) at the size of the finest level."""
        logits = self.layers[-1](pyramid[-1])
        for layer, feature_map in zip(reversed(self.layers[:-1]), reversed(pyramid[:-1]), strict=True):
            logits = add_upsampled(layer(feature_map), logits)
        return logits


class FPNNonLinearHead(nn.Module):
    """A U-Net decoder all of whose kernels are 1x1x1 (methods.md 1.5).

    Args:
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels.
        num_classes: Number of output channels.
    """

    def __init__(self, base_channels: int, num_scales: int, num_classes: int) -> None:
        super().__init__()
        *finer, coarsest = pyramid_channels(base_channels, num_scales)
        self.bottom_block = ResidualBlock(coarsest, 1)
        self.up_blocks = nn.ModuleList(nn.Sequential(nn.Conv3d(2 * c, c, 1)) for c in reversed(finer))
        self.skip_blocks = nn.ModuleList(nn.Conv3d(c, c, 1) for c in reversed(finer))
        self.right_blocks = nn.ModuleList(ResidualBlock(c, 1) for c in reversed(finer))
        self.final_block = nn.Conv3d(base_channels, num_classes, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Map the pyramid, finest first, to logits (B, num_classes, Z, Y, X) at the size of the finest level."""
        x = self.bottom_block(pyramid[-1])
        for up, skip, right, feature_map in zip(
            self.up_blocks, self.skip_blocks, self.right_blocks, reversed(pyramid[:-1]), strict=True
        ):
            x = right(add_upsampled(skip(feature_map), up(x)))
        return self.final_block(x)

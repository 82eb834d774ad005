"""Two inputs: image and encodings, each through a stem of half the first width (methods.md 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.lapn_unet import LapnPyramid, import_unet

_Stem = Callable[[int, int], nn.Module]  # from channels in and out


class TwoStems(nn.Module):
    """Replaces a network's first block: the outputs of two blocks, concatenated.

    Args:
        image: From the image to the first half of the channels.
        encodings: From the encodings to the others, on the same grid.
    """

    def __init__(self, image: nn.Module, encodings: nn.Module) -> None:
        super().__init__()
        self.image, self.encodings = image, encodings

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Map image (B, C, Z, Y, X) and encodings (B, d, Z, Y, X) to (B, width, ...).

        The input is a pair because its concatenation would be the largest tensor of all at full resolution.
        """
        image, encodings = inputs
        return torch.cat([self.image(image), self.encodings(encodings)], dim=1)


def with_two_stems(network: Any, encoding_channels: int) -> Any:
    """Give a segmentation network a second stem; it then takes the pair (image, encodings).

    Two new blocks with half of the channels each replace the first block (PlainConvUNet: the first convolution with its
    normalisation; ResidualEncoderUNet: the stem; LapnUNet and MonaiUNet: the first downward stage), freshly initialised
    as the network is. All other blocks stay.

    Args:
        network: Freshly built from plans; it is changed.
        encoding_channels: Number of channels of the encodings.

    Returns:
        The same network.

    Raises:
        UserError: The network is of another kind.
    """
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, PlainConvEncoder | ResidualEncoder):
        stack = getattr(encoder, "stem", None) or encoder.stages[0][-1]
        first = stack.convs[0]
        stems = _pair(_stem_of_nnunet(encoder, first), first.conv, encoding_channels)
        stack.convs[0] = stems.apply(network.initialize)
    elif isinstance(getattr(network, "backbone", None), LapnPyramid):
        model: Any = network.backbone.model
        first = next(layer for layer in model[0].modules() if isinstance(layer, nn.Conv3d))
        model[0] = _pair(_stem_of_monai(model[0]), first, encoding_channels)
    else:
        raise UserError(f"the plans' network {type(network).__name__} cannot take encodings besides the image; use "
                        f"plans whose network is PlainConvUNet, ResidualEncoderUNet, LapnUNet or "
                        f"MonaiUNet")  # fmt: skip
    return network


def _pair(stem: _Stem, first: nn.Conv3d, encoding_channels: int) -> TwoStems:
    """Two stems instead of the one that begins with the convolution `first`."""
    width = first.out_channels
    return TwoStems(stem(first.in_channels, width - width // 2), stem(encoding_channels, width // 2))


def _stem_of_nnunet(encoder: Any, first: Any) -> _Stem:
    from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU

    norm_last = encoder.norm_op is not None and isinstance(first.all_modules[-1], encoder.norm_op)
    return lambda channels, width: ConvDropoutNormReLU(
        encoder.conv_op, channels, width, first.conv.kernel_size, first.stride, encoder.conv_bias,
        encoder.norm_op, encoder.norm_op_kwargs, encoder.dropout_op, encoder.dropout_op_kwargs,
        encoder.nonlin, encoder.nonlin_kwargs, nonlin_first=norm_last,
    )  # fmt: skip


def _stem_of_monai(first: Any) -> _Stem:
    units = len(first.conv) if hasattr(first, "residual") else 0  # a residual unit, or a single convolution
    return lambda channels, width: import_unet()(
        spatial_dims=3,
        in_channels=channels,
        out_channels=1,
        channels=(width, width),
        strides=(2,),
        num_res_units=units,
        norm=("INSTANCE", {"affine": True}),
    ).model[0]

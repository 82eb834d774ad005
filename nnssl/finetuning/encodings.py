"""Training of the plans' U-Net on the image and the encodings of a frozen pixel encoder (LAPN; methods.md 5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnssl.checkpoints.intensity import IntensityBridge
from nnssl.checkpoints.pretrained import build_pixel_encoder
from nnssl.core.errors import UserError
from nnssl.finetuning.base_trainer import trusted_manager
from nnssl.finetuning.partial_labels import PartialLabels
from nnssl.finetuning.recipes import FlareRecipe
from nnssl.finetuning.segmentation import described_network, refuse_other_channels, saved_tensors
from nnssl.finetuning.start import ENCODINGS, Head
from nnssl.finetuning.trainer import PretrainedTrainer
from nnssl.networks.build import segmentation_of
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.heads import upsampled_to
from nnssl.networks.layout import InFastLayout, in_fast_layout
from nnssl.networks.monai_unet import has_deep_supervision
from nnssl.networks.two_stems import with_two_stems


class EncodedSegmentation(InFastLayout):
    """Image and encodings enter the plans' U-Net through two stems; the encoder never changes (methods.md 5.5).

    Args:
        pixels: The encoder; all of its heads are read, at the image's resolution. It becomes frozen.
        network: The plans' segmentation network, which gets a second stem.
        bridge: What gives the encoder the intensities of its pretraining; None where the image has them already.

    Raises:
        UserError: The plans' network cannot take a second stem.
    """

    def __init__(self, pixels: PixelEncoder, network: nn.Module, bridge: IntensityBridge | None) -> None:
        super().__init__()
        self.bridge, self.pixels, self.input_channels = bridge, pixels.freeze(), pixels.input_channels
        self.network = with_two_stems(network, sum(pixels.dims.values()))
        self.lay_out()

    @property
    def laid_out(self) -> nn.Module:
        """The plans' network; the encoder has a layout of its own."""
        return self.network

    def forward(self, x: Tensor) -> Any:
        """Map an image (B, C, Z, Y, X) in the plans' normalised values to what the plans' network gives.

        That is logits (B, num_classes, Z, Y, X), or a list of them, finest first, with deep supervision. The sides
        must be divisible by the total stride of that network; for the encoder they are padded.
        """
        return self.network((in_fast_layout(x), in_fast_layout(self.encodings(x))))

    def encodings(self, x: Tensor) -> Tensor:
        """Map an image (B, C, Z, Y, X) to its encodings (B, d, Z, Y, X), without gradient; cells are repeated."""
        with torch.no_grad():
            maps = self.pixels(x if self.bridge is None else self.bridge(x))
            whole = [upsampled_to(maps[name], stride, x.shape[2:]) for name, stride in self.pixels.strides.items()]
            return whole[0] if len(whole) == 1 else torch.cat(whole, dim=1)

    @property
    def decoder(self) -> Any:
        """Where nnU-Net switches deep supervision; the segmentation layers are `decoder.seg_layers`."""
        return self.network.decoder

    def pretrained_tensors(self) -> Mapping[str, Tensor]:
        """All of the encoder that the encodings depend on."""
        unused = tuple(f"backbone.{prefix}" for prefix in self.pixels.backbone.unused)
        return {name: tensor for name, tensor in saved_tensors(self.pixels).items() if not name.startswith(unused)}

    def own_tensors(self) -> Mapping[str, Tensor]:
        """Encoder and U-Net, without what the encodings do not depend on."""
        unused = tuple(f"pixels.backbone.{prefix}" for prefix in self.pixels.backbone.unused)
        return {name: tensor for name, tensor in saved_tensors(self).items() if not name.startswith(unused)}

    def check_patch(self, patch_size: Sequence[int], batch_size: int) -> None:
        """Raise UserError where the encoder cannot read such patches, padded."""
        backbone = self.pixels.backbone
        backbone.check_patch([-(-n // d) * d for n, d in zip(patch_size, backbone.divisor, strict=True)], batch_size)

    def train(self, mode: bool = True) -> EncodedSegmentation:
        """As `nn.Module.train`, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.pixels.eval()
        return self


def build_encoded_segmentation(
    network: Mapping[str, Any],
    configuration: dict[str, Any],
    num_input_channels: int,
    num_classes: int,
    deep_supervision: bool,
) -> EncodedSegmentation:
    """The network that a training and every prediction with it use.

    Args:
        network: `plans["nnssl"]["network"]`: encoder (`PretrainedEncoder.architecture`), intensity (channels of
            `IntensityBridge`, or None).
        configuration: Resolved 3D configuration of the plans.
        num_input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        deep_supervision: Whether the U-Net gives outputs at several resolutions, if it can.

    Raises:
        UserError: The plans were trained with another trainer, name a network of another kind, or are of a cascade.
    """
    if "encoder" not in network:
        raise UserError("these plans describe the network of another trainer (nnssl: network has no encoder); train "
                        "under plans of another name")  # fmt: skip
    refuse_other_channels(configuration, num_input_channels)
    channels = network["intensity"]
    whole: Any = segmentation_of(configuration, num_classes)
    built = EncodedSegmentation(
        build_pixel_encoder(network["encoder"], num_input_channels),
        whole,
        None if channels is None else IntensityBridge(channels),
    )
    if has_deep_supervision(configuration):
        built.decoder.deep_supervision = deep_supervision
    return built


class EncodingsTrainer(FlareRecipe, PartialLabels, PretrainedTrainer):
    """Frozen encodings and the image enter the plans' U-Net by two stems; partial labels, deep supervision as planned.

    The encoder is computed anew for every augmented patch. Nothing is mirrored, as for every frozen network here.
    """

    head: ClassVar[Head] = ENCODINGS
    freezes_itself: ClassVar[bool] = True

    def set_up(self) -> None:
        """Keep the deep supervision of the plans' network."""
        super().set_up()
        self.enable_deep_supervision = has_deep_supervision(self.configuration_manager.configuration)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build encoder and U-Net from the plans alone, as prediction does."""
        return build_encoded_segmentation(
            described_network(plans_manager.plans),
            trusted_manager(plans_manager, configuration_manager).configuration,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )

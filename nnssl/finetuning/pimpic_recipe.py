"""PiMPiC's published fine-tuning: soft Dice loss, noise and affine augmentation, early stopping (methods.md 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.finetuning.unet_recipes import UNetTrainer
from nnssl.methods.pimpic.loss import softmax_dice_loss

_WINDOW_HU = 600.0  # width of the window [-200, 400] HU that the authors map to [0, 1]
_NOISE_PROBABILITY, _NOISE_SIGMA = 0.2, (0.0, 0.01)  # MONAI draws the deviation, up to the 0.01 that the authors give
_AFFINE_PROBABILITY, _ANGLE, _SCALE = 0.1, (-0.1, 0.1), (0.9, 1.1)


class WindowNoise(GaussianNoiseTransform):
    """Noise whose deviation is drawn from U(0, 0.01) of the width of each channel's window.

    Args:
        widths: Of each channel, in its normalised values; None takes the range of the values in the patch.
    """

    def __init__(self, widths: Sequence[float | None]) -> None:
        super().__init__(_NOISE_SIGMA, p_per_channel=1.0, synchronize_channels=False)
        self.widths = tuple(widths)

    def get_parameters(self, **data_dict: Any) -> dict:
        """As the base class's, with the deviations in normalised values."""
        parameters: dict = super().get_parameters(**data_dict)
        ranges = [float(channel.max() - channel.min()) for channel in data_dict["image"]]
        widths = [found if width is None else width for width, found in zip(self.widths, ranges, strict=True)]
        parameters["sigmas"] = [s * width for s, width in zip(parameters["sigmas"], widths, strict=True)]
        return parameters


class JointAffine(SpatialTransform):
    """Rotation by up to 0.1 rad and scaling by up to a tenth an axis, both together with a probability of 0.1.

    Args:
        patch_size: (3,) or, for planes, (2,) of the result, which is cut from the middle.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__(
            tuple(patch_size), 0, random_crop=False, rotation=_ANGLE, scaling=_SCALE,
            border_mode_seg="constant", padding_value_seg=-1,
        )  # fmt: skip

    def get_parameters(self, **data_dict: Any) -> dict:
        """Draw once whether to do both."""
        self.p_rotation = self.p_scaling = float(np.random.uniform() < _AFFINE_PROBABILITY)
        parameters: dict = super().get_parameters(**data_dict)
        return parameters


class SoftmaxDice(nn.Module):
    """`softmax_dice_loss` as nnU-Net calls a loss.

    Args:
        ignore_label: Label of the voxels that do not count, if there is one.
    """

    def __init__(self, ignore_label: int | None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss () of logits (B, C, Z, Y, X) and labels (B, 1, Z, Y, X)."""
        return softmax_dice_loss(output, target, None if self.ignore_label is None else target != self.ignore_label)


class PimpicTrainer(UNetTrainer):
    """Adam at a constant 1e-5 without decay and the soft Dice loss with background, for up to 500 epochs.

    The training ends after 15 epochs without a lower validation loss; `nnssl_patience` sets another number. Half of the
    patches are around foreground. Nothing is mirrored. The number of patches a step is that of the plans (32 in the
    paper), the steps an epoch are nnU-Net's 250.
    """

    rate: ClassVar[float] = 1e-5
    epochs: ClassVar[int] = 500
    mirrors: ClassVar[bool] = False
    patience: int | None = 15

    def set_up(self) -> None:
        """Set the share of foreground patches as well.

        Raises:
            UserError: the dataset has regions; or as of the other bases.
        """
        super().set_up()
        self.oversample_foreground_percent = 0.5
        if self.label_manager.has_regions:
            raise UserError(f"{type(self).__name__} trains with a softmax over labels, and this dataset has regions, "
                            f"which overlap; train nnUNetTrainer_SSLUNetFinetune")  # fmt: skip

    def initialize(self) -> None:
        """Also note the recipe in the plans, and so in every checkpoint."""
        self._block["recipe"] = "published"
        super().initialize()

    def take_up(self, began: dict[str, Any]) -> None:
        """Say so where the training began before this recipe was the trainer's."""
        if began.get("recipe") != "published":
            self.print_to_log_file("WARNING: this training began with nnU-Net's loss and augmentation, and goes on "
                                   "with PiMPiC's")  # fmt: skip

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """As nnU-Net's, with a patch that is large enough for these angles and scales."""
        _, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        final = self.configuration_manager.patch_size
        size = get_patch_size(final[-2:] if flat else final, *[_ANGLE] * 3, _SCALE)
        return _ANGLE, flat, [final[0], *size] if flat else size, axes

    def get_training_transforms(
        self, patch_size: Any, rotation: Any, scales: Any, axes: Any, flat: bool, *_: Any, **labels: Any
    ) -> ComposeTransforms:
        """The authors' augmentation, before those of nnU-Net's transforms that only prepare the label map."""
        affine: list[Any] = [JointAffine(patch_size[1:] if flat else patch_size)]
        if flat:
            affine = [Convert3DTo2DTransform(), *affine, Convert2DTo3DTransform()]
        noise = RandomTransform(WindowNoise(self._windows()), apply_probability=_NOISE_PROBABILITY)
        labels.pop("use_mask_for_norm", None)
        prepared = self.get_validation_transforms(scales, **labels)
        return ComposeTransforms([noise, *affine, *prepared.transforms])

    def _build_loss(self) -> SoftmaxDice:
        return SoftmaxDice(self.label_manager.ignore_label)

    def _windows(self) -> list[float | None]:
        """Width of the authors' window in the normalised values of each channel; None where there are no HU."""
        known = self.plans_manager.foreground_intensity_properties_per_channel
        schemes = self.configuration_manager.normalization_schemes
        return [
            _WINDOW_HU / max(float(known[str(channel)]["std"]), 1e-8) if scheme == "CTNormalization" else None
            for channel, scheme in enumerate(schemes)
        ]

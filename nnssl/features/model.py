"""The backbone of a finished pretraining as a module for any use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nnssl.checkpoints.loading import load_whole
from nnssl.checkpoints.pretrained import Pretrained, pretrained_of
from nnssl.checkpoints.runs import Run, open_run
from nnssl.core.distributed import check_device
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage, prepare_image
from nnssl.methods.options import from_plain
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import FeaturePyramid, Stride, padded_to_multiple, pooled


class PretrainedModel(nn.Module):
    """A frozen backbone with the plans that its images are preprocessed by.

    It stays in evaluation mode: `train()` changes nothing. A voxel (z, y, x) lies in the cell (z // s_z, y // s_y,
    x // s_x) of a level of stride s. Images have any size; they are padded with zeros at their end where the network
    needs it, and cells that hold only padding are cut off.

    Args:
        backbone: the network, without the maps that the pretraining did not use.
        pretrained: from the checkpoint.
        patch_size: (Z, Y, X) voxels of the crops that the backbone learned from.
        is_random: whether the weights are random ones in place of the pretraining's.

    Attributes:
        channels: of each level, finest first.
        strides: (z, y, x) voxels a cell of each level.
        patch_size, plans, configuration, dataset_json, method, levels, path, orientation: of the pretraining, see
            `nnssl.checkpoints.pretrained.Pretrained`.
    """

    def __init__(
        self, backbone: FeaturePyramid, pretrained: Pretrained, patch_size: Sequence[int], is_random: bool = False
    ) -> None:
        super().__init__()
        self.is_random = is_random
        self.backbone = backbone.requires_grad_(False)
        self.channels: tuple[int, ...] = backbone.channels[backbone.finest :]
        self.strides: tuple[Stride, ...] = backbone.strides[backbone.finest :]
        self.divisor: Stride = backbone.divisor
        self.input_channels = backbone.input_channels
        self.patch_size = cast(Stride, tuple(int(n) for n in patch_size))
        self.plans: dict[str, Any] = pretrained.plans
        self.configuration = pretrained.configuration
        self.dataset_json: dict[str, Any] = pretrained.dataset_json
        self.method = pretrained.method
        self.levels: Literal["encoder", "decoder"] = pretrained.levels
        self.path = pretrained.path
        self.orientation = pretrained.orientation
        self.eval()

    def train(self, mode: bool = True) -> PretrainedModel:
        """Stay in evaluation mode, also as a part of a module that is trained."""
        return cast(PretrainedModel, super().train(False))

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights: it keeps results of different weights apart."""
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a preprocessed image to the feature pyramid.

        Args:
            x: (B, C, Z, Y, X), the plans' normalised values.

        Returns:
            Levels (B, channels[l], ceil(Z / s_z), ceil(Y / s_y), ceil(X / s_x)), finest first.

        Raises:
            UserError: x has other axes or channels, or is too small for the network.
        """
        if x.ndim != 5 or x.shape[1] != self.input_channels:
            raise UserError(f"the model takes a tensor (B, {self.input_channels}, Z, Y, X) of normalised values, and "
                            f"this one is {tuple(x.shape)}; prepare(image).values[None] is one")  # fmt: skip
        padded = padded_to_multiple(x, self.divisor)
        self.backbone.check_patch(padded.shape[2:])
        computed = self.backbone(padded)[self.backbone.finest :]
        return [_inside(level, x.shape[2:], stride) for level, stride in zip(computed, self.strides, strict=True)]

    def dense(self, x: Tensor) -> Tensor:
        """Features of every voxel (B, sum(channels), Z, Y, X): the cells that hold it, of all levels, finest first.

        Arguments and errors as of `forward`.
        """
        pyramid = self(x)
        size = x.shape[2:]
        whole = pyramid[0].new_empty(len(x), sum(self.channels), *size)
        for part, level, stride in zip(whole.split(self.channels, dim=1), pyramid, self.strides, strict=True):
            for axis, (n, step) in enumerate(zip(size, stride, strict=True), start=2):
                if step > 1:
                    level = level.index_select(axis, torch.arange(n, device=level.device) // step)
            part.copy_(level)
        return whole

    def pooled(self, x: Tensor) -> Tensor:
        """One float32 vector for each image (B, sum(channels)): the mean of each level over space, finest first.

        Arguments and errors as of `forward`.
        """
        return pooled(self(x))

    def prepare(self, image: str | Path, with_body: bool = False) -> PreparedImage:
        """Read a raw image and preprocess it by nnU-Net with the plans of the pretraining.

        Args:
            image: the file of its first channel, one file with all channels, or the case, as in `imagesTr/case`.
            with_body: make the mask of the body too.

        Returns:
            Its `values` (C, Z, Y, X) float32, its `geometry` from voxels to mm, and its `body`.

        Raises:
            UserError: the image is missing or cannot be used.
        """
        return prepare_image(image, self.plans, self.configuration, self.dataset_json, with_body)


def _inside(level: Tensor, size: Sequence[int], stride: Stride) -> Tensor:
    z, y, x = (-(-n // s) for n, s in zip(size, stride, strict=True))
    return level[:, :, :z, :y, :x]


def load_pretrained(path: str | Path, device: str = "cpu") -> PretrainedModel:
    """Load the backbone of a pretraining, frozen.

    Args:
        path: run folder of any method of `nnssl_pretrain`, or a checkpoint; or `random:RUN` for the same network with
            random weights.
        device: `cpu` or `cuda`.

    Raises:
        UserError: there is no such checkpoint, or it does not fit its own plans.
    """
    check_device(device)
    return model_of(open_run(path)).to(device)


def model_of(run: Run) -> PretrainedModel:
    """The frozen backbone of an opened run, on the CPU."""
    pretrained = pretrained_of(run.content, run.checkpoint)
    method = get_method(pretrained.method)
    config = from_plain(method.config_class, pretrained.config)
    backbone = build_backbone(pretrained.plans, pretrained.configuration, pretrained.levels)
    if issubclass(method, PixelMethod):  # maps finer than its finest encoding are not trained
        backbone.leave_out_finer(min(head.level for head in method.encoding_heads(config, backbone).values()))
    load_whole(backbone, pretrained.backbone, pretrained.path)
    return PretrainedModel(backbone, pretrained, cast(Stride, config.patch_size), run.is_random)

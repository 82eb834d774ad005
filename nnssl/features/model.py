"""A finished pretraining as features: its backbone as a module for any use, or named maps of raw images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nnssl.checkpoints.loading import load_whole
from nnssl.checkpoints.pretrained import Pretrained, PretrainedEncoder, pixel_encoder_of, pretrained_of
from nnssl.checkpoints.runs import Run, open_run
from nnssl.core.distributed import check_device, resolve_device
from nnssl.core.errors import UserError
from nnssl.features.cases import channel_files
from nnssl.features.images import ImageReader, PreparedImage, prepare_image
from nnssl.features.tiles import EncodedImage, LevelEncoder, encode_image
from nnssl.methods.options import from_plain
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import build_backbone
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import FeaturePyramid, Stride, cropped, padded_to_multiple, pooled


class PretrainedModel(nn.Module):
    """A frozen backbone with the plans that its images are preprocessed by.

    It stays in evaluation mode: `train()` changes nothing. A voxel (z, y, x) is in the cell (z // s_z, y // s_y,
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
        self.check_input(x.shape[1], padded.shape[2:])
        computed = self.backbone(padded)[self.backbone.finest :]
        return [
            cropped(level, [-(-n // s) for n, s in zip(x.shape[2:], stride, strict=True)])
            for level, stride in zip(computed, self.strides, strict=True)
        ]

    def check_input(self, channels: int, size: Sequence[int]) -> None:
        """Raise UserError where the network does not take this number of channels or a patch of (Z, Y, X) voxels."""
        if channels != self.input_channels:
            raise UserError(f"the model takes {self.input_channels} channels of normalised values, not {channels}; "
                            f"prepare(image).values has them")  # fmt: skip
        self.backbone.check_patch(size)

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
        return prepare_image(image, self, with_body)


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


@dataclass(frozen=True)
class FeatureSource:
    """Makes named feature maps of raw images.

    Args:
        origin: the pretraining with its plans.
        encoder: levels of its backbone, or the pixel encoder that it trained.
        title: method and levels, for pictures.
        encodes: whether the maps are encodings trained to be compared by their cosine; other features have a large part
            in common, which must be subtracted first (`nnssl.features.match.comparable`).
        device: where to compute.
        images: prepares the images.
    """

    origin: PretrainedModel | PretrainedEncoder
    encoder: LevelEncoder | PixelEncoder
    title: str
    encodes: bool
    device: str
    images: ImageReader

    def encode(self, image: PreparedImage, blend: bool = True) -> EncodedImage:
        """The maps of an image, in tiles of the pretraining's patch size, blended or each cell from one tile."""
        return encode_image(self.encoder, image.values, self.origin.patch_size, self.device, blend=blend)


def open_features(
    model: str | Path,
    level: int | None = None,
    device: str | None = None,
    images: Sequence[str | Path] = (),
    allow_other_intensities: bool = False,
    encodings: bool = False,
) -> FeatureSource:
    """Open a pretraining for raw images.

    Args:
        model: run folder or checkpoint of any method; or `random:RUN` for the same network with random weights.
        level: of its feature pyramid, 0 for the finest; None for all of them, or for the trained pixel encoder of
            methods that have one (`lapn`, `sam`).
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        images: raw images that will be prepared.
        allow_other_intensities: take images of another modality than the pretraining's (`nnssl.data.guard`).
        encodings: nothing but a trained pixel encoder will do.

    Raises:
        UserError: there is no such checkpoint, level, pixel encoder or image, or an image is of another modality.
    """
    device = resolve_device(device)
    run = open_run(model)
    origin: PretrainedModel | PretrainedEncoder
    encoder: LevelEncoder | PixelEncoder
    encodes = encodings or (level is None and issubclass(get_method(run.content["method"]), PixelMethod))
    if encodes:
        origin = pixel_encoder_of(run.content, run.checkpoint)
        encoder, said = origin.encoder, "encodings"
    else:
        origin = model_of(run).to(device)
        encoder, said = _levels_of(origin, level)
    files = [channel_files(image, encoder.input_channels, origin.dataset_json["file_ending"]) for image in images]
    reader = ImageReader(origin, files, allow_other_intensities)
    return FeatureSource(origin, encoder, f"{run.title}, {said}", encodes, device, reader)


def _levels_of(model: PretrainedModel, level: int | None) -> tuple[LevelEncoder, str]:
    """One level or all, and what to call them."""
    count = len(model.strides)
    if level is not None and not 0 <= level < count:
        raise UserError(f"-level {level} does not exist; {model.method} has the levels 0 (finest) to {count - 1}")
    chosen = list(range(count)) if level is None else [level]
    return LevelEncoder(model, chosen), f"all {count} levels" if len(chosen) > 1 else f"level {chosen[0]} of {count}"

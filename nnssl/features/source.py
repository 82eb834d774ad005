"""Named feature maps of raw images by any pretraining: for matching and for figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import ArrayLike
from torch import Tensor, nn

from nnssl.checkpoints.pretrained import PretrainedEncoder, pixel_encoder_of
from nnssl.checkpoints.runs import open_run
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.data.check_case import body_mask_ct
from nnssl.data.raw import first_ct_channel
from nnssl.features.images import PreparedImage, channel_files, grey_window, prepare_image
from nnssl.features.inputs import ImageGuard
from nnssl.features.match import read_vectors, subtract
from nnssl.features.model import PretrainedModel, model_of
from nnssl.features.tiles import LARGEST, EncodedImage, encode_image
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import resolve_configuration
from nnssl.networks.encodings import PixelEncoder

_AIR = 0.1  # of the range of an image without Hounsfield units


class LevelEncoder(nn.Module):
    """Levels of a pretrained backbone as named maps, like those of a pixel encoder.

    The finest one is called "fine", others "level 1" and so on.

    Args:
        model: the backbone.
        levels: which of its levels, ascending.
    """

    def __init__(self, model: PretrainedModel, levels: Sequence[int]) -> None:
        super().__init__()
        self.backbone = model
        self.levels = dict(zip(["fine", *(f"level {level}" for level in levels[1:])], levels, strict=True))
        self.input_channels = model.input_channels
        self.strides = {name: model.strides[level] for name, level in self.levels.items()}
        self.dims = {name: model.channels[level] for name, level in self.levels.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map a volume (B, C, Z, Y, X) to (B, d, Z_l, Y_l, X_l) by name."""
        pyramid = self.backbone(x)
        return {name: pyramid[level].float().clamp(-LARGEST, LARGEST) for name, level in self.levels.items()}


@dataclass(frozen=True)
class FeatureSource:
    """Makes named feature maps of raw images.

    Args:
        origin: the pretraining with its plans.
        encoder: levels of its backbone, or the pixel encoder that it trained.
        title: method and levels, for pictures.
        encodes: whether the maps are encodings trained to be compared by their cosine; other features have a large part
            in common, which has to be subtracted first (`comparable`).
        device: where to compute.
        guard: sees every prepared image.
    """

    origin: PretrainedModel | PretrainedEncoder
    encoder: LevelEncoder | PixelEncoder
    title: str
    encodes: bool
    device: str
    guard: ImageGuard

    def prepare(self, image: str | Path, with_body: bool = True) -> PreparedImage:
        """Read a raw image and preprocess it, with the mask of its body: what air from outside does not reach.

        In images other than CT, air is what is darker than a tenth of the range of the first channel.

        Raises:
            UserError: the image is missing, cannot be used, or shows no body.
        """
        origin = self.origin
        prepared = self.guard.saw(
            prepare_image(image, origin.plans, origin.configuration, origin.dataset_json, with_body)
        )
        if prepared.body is None:
            return prepared
        schemes = resolve_configuration(origin.plans, origin.configuration)["normalization_schemes"]
        body = prepared.body
        if first_ct_channel(schemes) is None:
            dark, bright = grey_window(prepared.values[0])
            body = body & body_mask_ct(prepared.values[0], dark + _AIR * (bright - dark))
        if not body.any():
            raise UserError(f"{image} shows no body, only air; give another image")
        return replace(prepared, body=body)

    def files_of(self, image: str | Path) -> tuple[str, ...]:
        """Files of a raw image; errors as of `nnssl.features.images.channel_files`."""
        return channel_files(image, self.encoder.input_channels, self.origin.dataset_json["file_ending"])

    def encode(self, image: PreparedImage) -> EncodedImage:
        """The maps of an image, in tiles of the pretraining's patch size."""
        return encode_image(self.encoder, image.values, self.origin.patch_size, self.device)

    def comparable(self, voxels: ArrayLike, *images: EncodedImage) -> list[EncodedImage]:
        """Images whose cosines say something.

        Features of a convolutional network are mostly alike everywhere: their mean over the body of the first image is
        subtracted from all images. Encodings that were trained by their cosine stay as they are.

        Args:
            voxels: (N, 3) voxels of the first image's body.
            images: one or more.
        """
        if self.encodes:
            return list(images)
        means = {name: vectors.mean(0) for name, vectors in read_vectors(images[0], voxels).items()}
        return [subtract(image, means) for image in images]


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
    guard = ImageGuard(origin, files, allow_other_intensities)
    return FeatureSource(origin, encoder, f"{run.title}, {said}", encodes, device, guard)


def _levels_of(model: PretrainedModel, level: int | None) -> tuple[LevelEncoder, str]:
    """One level or all, and what to call them."""
    count = len(model.strides)
    if level is not None and not 0 <= level < count:
        raise UserError(f"-level {level} does not exist; {model.method} has the levels 0 (finest) to {count - 1}")
    chosen = list(range(count)) if level is None else [level]
    return LevelEncoder(model, chosen), f"all {count} levels" if len(chosen) > 1 else f"level {chosen[0]} of {count}"

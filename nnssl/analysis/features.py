"""Feature maps of raw images, for every method: what the figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnssl.analysis.match_picture import grey_window
from nnssl.checkpoints.pretrained import read_pixel_encoder
from nnssl.core.errors import UserError
from nnssl.data.body_mask import body_mask_ct
from nnssl.data.raw import first_ct_channel
from nnssl.features.guard import ImageGuard
from nnssl.features.images import PreparedImage, channel_files, prepare_image
from nnssl.features.match import EncodedImage, encode_image
from nnssl.features.model import PretrainedModel, load_pretrained
from nnssl.methods.registry import get_method
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import resolve_configuration
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import interpolate_cells

Floats = NDArray[np.float64]
Vectors = dict[str, NDArray[np.float32]]  # (N, d) by the name of the map that they were read from
_FINE = "fine"  # what matching calls the map whose cells are compared
_LARGEST = 65504.0  # of float16, which maps are kept in
_AIR = 0.1  # of the range of an image without Hounsfield units
_POINTS = 20_000  # read at a time


class LevelEncoder(nn.Module):
    """Levels of a pretrained backbone as named maps, as `nnssl.features.match` takes those of a pixel encoder.

    The finest one is called "fine", others "level 1" and so on.

    Args:
        model: the backbone.
        levels: which of its levels, ascending.
    """

    def __init__(self, model: PretrainedModel, levels: Sequence[int]) -> None:
        super().__init__()
        self.backbone = model
        names = [_FINE, *(f"level {level}" for level in levels[1:])]
        self.levels = dict(zip(names, levels, strict=True))
        self.input_channels = model.input_channels
        self.strides = {name: model.strides[level] for name, level in self.levels.items()}
        self.dims = {name: model.channels[level] for name, level in self.levels.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map a volume (B, C, Z, Y, X) to (B, d, Z_l, Y_l, X_l) by name."""
        pyramid = self.backbone(x)
        return {name: pyramid[level].float().clamp(-_LARGEST, _LARGEST) for name, level in self.levels.items()}


@dataclass(frozen=True)
class FeatureSource:
    """What makes feature maps of raw images.

    Args:
        model: the pretrained backbone, with its plans.
        encoder: its levels, or the pixel encoder that the pretraining has trained.
        title: method and levels, for the pictures.
        encodes: whether the maps are encodings that were trained to be compared by their cosine; other features have
            a large part in common, which has to be subtracted first.
        device: where to compute.
        guard: that sees every image which is prepared.
    """

    model: PretrainedModel
    encoder: LevelEncoder | PixelEncoder
    title: str
    encodes: bool
    device: str
    guard: ImageGuard

    def encode(self, image: PreparedImage) -> EncodedImage:
        """The maps of an image, in tiles of the pretraining's patch size."""
        return encode_image(cast(PixelEncoder, self.encoder), image.values, self.model.patch_size, self.device)

    def prepare(self, image: str | Path) -> PreparedImage:
        """Read a raw image and preprocess it, with the mask of its body: what air from outside does not reach.

        In images that are no CT, air is what is darker than a tenth of the range of the first channel.

        Raises:
            UserError: the image is missing, cannot be used, or shows no body.
        """
        model = self.model
        prepared = self.guard.saw(
            prepare_image(image, model.plans, model.configuration, model.dataset_json, with_body=True)
        )
        assert prepared.body is not None
        schemes = resolve_configuration(model.plans, model.configuration)["normalization_schemes"]
        body = prepared.body
        if first_ct_channel(schemes) is None:
            dark, bright = grey_window(prepared.values[0])
            body = body & body_mask_ct(prepared.values[0], dark + _AIR * (bright - dark))
        if not body.any():
            raise UserError(f"{image} shows no body, only air; give another image")
        return replace(prepared, body=body)


def body_of(image: PreparedImage) -> NDArray[np.bool_]:
    """(Z, Y, X) mask of an image that `FeatureSource.prepare` made."""
    assert image.body is not None
    return image.body


def generator(seed: int) -> np.random.Generator:
    """Source of what is drawn at random; raises UserError for a seed that numpy or scikit-learn does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"-seed takes a whole number from 0 to {2**32 - 1}, not {seed}")
    return np.random.default_rng(seed)


def open_features(
    model: str | Path,
    level: int | None = None,
    device: str = "cpu",
    images: Sequence[str | Path] = (),
    allow_other_intensities: bool = False,
) -> FeatureSource:
    """Open a pretraining for figures of images.

    Args:
        model: run folder or checkpoint of any method.
        level: of its feature pyramid, 0 for the finest; None for all of them, and for the trained pixel encoder of
            methods that have one (`lapn`, `sam`).
        device: `cpu` or `cuda`.
        images: raw images that will be prepared.
        allow_other_intensities: whether they may be of another modality than the pretraining's.

    Raises:
        UserError: there is no such checkpoint, level or image, or an image is of another modality
            (`nnssl.data.guard`).
    """
    loaded = load_pretrained(model, device)
    count = len(loaded.strides)
    if level is not None and not 0 <= level < count:
        raise UserError(f"-level {level} does not exist; {loaded.method} has the levels 0 (finest) to {count - 1}")
    files = [channel_files(image, loaded.input_channels, loaded.dataset_json["file_ending"]) for image in images]
    guard = ImageGuard(loaded, files, allow_other_intensities)
    if level is None and issubclass(get_method(loaded.method), PixelMethod):
        pixel = read_pixel_encoder(loaded.path)
        return FeatureSource(loaded, pixel.encoder, f"{loaded.method}, encodings", True, device, guard)
    chosen = list(range(count)) if level is None else [level]
    said = f"all {count} levels" if len(chosen) > 1 else f"level {chosen[0]} of {count}"
    return FeatureSource(loaded, LevelEncoder(loaded, chosen), f"{loaded.method}, {said}", False, device, guard)


def read_vectors(image: EncodedImage, points: ArrayLike) -> Vectors:
    """Read the maps at points by trilinear interpolation.

    Args:
        image: of any maps.
        points: (N, 3) voxels (z, y, x) of the image; they may lie between its voxels.

    Returns:
        (N, d) float32 by name.
    """
    voxels = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    read: dict[str, list[np.ndarray]] = {name: [] for name in image.maps}
    for part in np.split(voxels, range(_POINTS, len(voxels), _POINTS)):
        places = torch.from_numpy(np.insert(part, 0, 0, axis=1))
        for name, values in image.maps.items():
            corners, weights = interpolate_cells(values.shape[1:], image.strides[name], places)
            _, z, y, x = corners.unbind(-1)
            read[name].append((values[:, z, y, x].float() * weights.float()).sum(-1).T.numpy())
    return {name: np.concatenate(parts) for name, parts in read.items()}


def subtract(image: EncodedImage, means: Mapping[str, NDArray[np.float32]]) -> EncodedImage:
    """The image with a vector (d,) subtracted from each of its maps, by name."""
    maps = {
        name: (values.float() - torch.from_numpy(means[name])[:, None, None, None]).clamp(-_LARGEST, _LARGEST).half()
        for name, values in image.maps.items()
    }
    return replace(image, maps=maps)


def body_voxels(body: NDArray[np.bool_], count: int, rng: np.random.Generator) -> Floats:
    """Draw different voxels (N, 3) of a mask (Z, Y, X): `count`, or all if they are fewer."""
    inside = np.flatnonzero(body)
    chosen = rng.choice(inside, min(count, len(inside)), replace=False)
    return np.stack(np.unravel_index(chosen, body.shape), axis=1).astype(np.float64)


def comparable(source: FeatureSource, voxels: Floats, *images: EncodedImage) -> list[EncodedImage]:
    """Images whose cosines say something.

    Features of a convolutional network are mostly alike everywhere; what they share, their mean over the body of the
    first image, is subtracted from all. Encodings that were trained by their cosine stay as they are.

    Args:
        source: of the images.
        voxels: (N, 3) voxels of the first image's body.
        images: one or more.
    """
    if source.encodes:
        return list(images)
    means = {name: vectors.mean(0) for name, vectors in read_vectors(images[0], voxels).items()}
    return [subtract(image, means) for image in images]

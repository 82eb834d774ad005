"""What pairs the volumes of a run: the pixel encoder that is asked for or found, and its encodings of every volume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nnssl.checkpoints.intensity import IntensityBridge, bridge_intensities
from nnssl.checkpoints.pretrained import PretrainedEncoder, finished_pretrainings, read_pixel_encoder
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.errors import UserError
from nnssl.core.files import file_digest
from nnssl.core.system import why
from nnssl.data.guard import Images, warn_of_images
from nnssl.data.loader import Aligner, RelativePosition, reading
from nnssl.data.pool import map_cases
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.features.match import ANYWHERE
from nnssl.features.stored import (
    EmbeddingAligner,
    PooledEncoder,
    embedding_folder,
    has_embeddings,
    sameness,
    save_embeddings,
)
from nnssl.features.tiles import EncodedImage, encode_image
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.setup import Setup

POSITION = "position"  # in place of a checkpoint: no encoder, the same relative position in the body
_PAIRS, _POINTS = 3, 2  # of neighbouring volumes, and in each, that are searched to see whether an encoder knows places
_SAME_SPACING = 0.01  # relative difference up to which volumes are not resampled

log = logging.getLogger("nnssl")


def choose_aligner(asked: str | Path | None, config: Any, datasets: Sequence[str], results: Path) -> Aligner:
    """What pairs the volumes of a method that needs pairs.

    Args:
        asked: RUN of a pixel encoder (`nnssl.checkpoints.runs.checkpoint_of`); `position` for none; None for the only
            finished pretraining of these datasets that encodes pixels, if there is one.
        config: of the method, with `match_threshold`, `match_draws` and `match_back_mm`.
        datasets: names.
        results: nnUNet_results.

    Raises:
        UserError: there is no such checkpoint, it encodes no pixels, or several could be meant.
    """
    if asked == POSITION:
        return RelativePosition()
    path = _the_only_one(datasets, results) if asked is None else checkpoint_of(asked)
    if path is None:
        return RelativePosition()
    encoder = read_pixel_encoder(path)
    key = file_digest(path, 4)  # of the content: a moved checkpoint is the same, and a retrained one is another
    return EmbeddingAligner(
        path.resolve(), encoder.method, key, config.match_threshold, config.match_draws, config.match_back_mm
    )


def prepare_embeddings(setup: Setup, device: str, may_compute: bool, allow_other_intensities: bool = False) -> None:
    """Encode every volume of the run that has no encodings yet, and say where they are and how large.

    Args:
        setup: of a method that pairs volumes.
        device: cuda or cpu.
        may_compute: False where several processes would do it at once; everything must be there then.
        allow_other_intensities: whether the encoder may be of another modality than the volumes.

    Raises:
        UserError: the encoder does not suit the plans, or something is missing that must not be made here.
    """
    aligner = setup.aligner
    if not isinstance(aligner, EmbeddingAligner):
        return
    volumes = [(c.folders[c.folder_of[i]], str(c.names[i])) for c in (setup.train, setup.val) for i in range(len(c))]
    missing = [(folder, case) for folder, case in volumes if not has_embeddings(folder, case, aligner.key)]
    homes = ", ".join(str(home) for home in sorted({embedding_folder(folder, aligner.key) for folder, _ in volumes}))
    if not missing:
        log.info(f"pairs by {aligner.identity}: the encodings of all {len(volumes)} volumes are in {homes}")
        _warn_of_sameness(aligner, volumes)
        return
    if not may_compute:
        raise UserError(f"{len(missing)} volumes have no encodings by {aligner.checkpoint} yet, and processes that "
                        f"train together do not make them; run the same once with nnssl_pretrain itself, without "
                        f"torchrun")  # fmt: skip
    try:
        encode = VolumeEncoder(read_pixel_encoder(aligner.checkpoint), setup, device, allow_other_intensities)
        sizes = _encode(missing, aligner, encode)
    except OSError as error:
        if (sentence := why(error, "run this again: what is done is kept")) is None:
            raise
        raise UserError(f"the encodings of {homes}: {sentence}") from error
    torch.cuda.empty_cache()  # the training may be in other processes
    log.info(f"pairs by {aligner.identity}: encoded {len(sizes)} of {len(volumes)} volumes, "
             f"{np.mean(sizes):,.0f} bytes a volume, in {homes}")  # fmt: skip
    _warn_of_sameness(aligner, volumes)


def _warn_of_sameness(aligner: EmbeddingAligner, volumes: Sequence[tuple[VolumeFolder, str]]) -> None:
    """Say where every place of a volume matches every point, so that the pairs are random ones."""
    rng, opened = np.random.default_rng(0), []
    for index, (folder, case) in enumerate(volumes[: _PAIRS + 1]):
        with reading(folder, case):
            volume = folder.open(case, index)
            opened.append((volume, np.stack([volume.random_body_voxel(rng) for _ in range(_POINTS)])))
    if len(opened) < 2:
        return
    found = [sameness(aligner, volume, other, points) for (volume, points), (other, _) in pairwise(opened)]
    share, similarity = np.mean([part for part, _ in found]), np.median([best for _, best in found])
    if share > ANYWHERE:
        log.warning(f"pairs by {aligner.identity}: {share:.0%} of a volume is as similar to a point as the best match "
                    f"there (median similarity {similarity:.2f}; limit {ANYWHERE:.0%}), so that pairs are nearly "
                    f"random; pretrain the encoder for more steps, name another one with -alignment RUN, or add "
                    f"-alignment {POSITION}")  # fmt: skip


def _encode(volumes: Sequence[tuple[VolumeFolder, str]], aligner: EmbeddingAligner, encode: VolumeEncoder) -> list[int]:
    """Encode volumes and write what comes out; bytes of each."""

    def encode_and_save(volume: tuple[VolumeFolder, str]) -> int:
        folder, case = volume
        return save_embeddings(folder, case, aligner.key, encode(folder.open(case)))

    return list(map_cases(encode_and_save, volumes, 1, f"encodings by {aligner.identity}"))


class VolumeEncoder:
    """Encodes preprocessed volumes of a run with an encoder that was pretrained with other plans.

    Intensities are mapped to those of the encoder's plans, and volumes resampled to their spacing, trilinearly. What
    the run's plans have cut off does not come back: a warning says so, and warns of another orientation.

    Args:
        source: the encoder.
        setup: of the run.
        device: cuda or cpu.
        allow: whether the encoder may be of another modality than the volumes.

    Raises:
        UserError: the plans differ in channels or order of the axes, or the modalities differ (`nnssl.data.guard`).
    """

    def __init__(self, source: PretrainedEncoder, setup: Setup, device: str, allow: bool = False) -> None:
        _check_images(source, setup, allow)
        bridge = bridge_intensities(setup.plans, source.plans, (setup.configuration, source.configuration), allow)
        for warning in bridge.warnings:
            log.warning(f"encodings for the pairs: {warning}")
        z, y, x = resolve_configuration(source.plans, source.configuration)["spacing"]
        self.spacing, self.patch_size, self.device = (float(z), float(y), float(x)), source.patch_size, device
        self.encoder = PooledEncoder(source.encoder, self.spacing)
        self.bridge = None if bridge.channels is None else IntensityBridge(bridge.channels)

    def __call__(self, volume: BloscVolume) -> EncodedImage:
        """Encode a whole volume."""
        with reading(volume.folder, volume.case):
            values = torch.from_numpy(volume.read(np.zeros(3, dtype=np.int64), volume.size))[None]
        if self.bridge is not None:
            values = self.bridge(values)
        size = resampled_size(volume.size.tolist(), volume.spacing, self.spacing)
        if size != volume.size.tolist():
            values = F.interpolate(values, size=size, mode="trilinear", align_corners=False)
        return encode_image(self.encoder, values[0].numpy(), self.patch_size, self.device)


def resampled_size(size: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> list[int]:
    """Voxels of a volume at another spacing; the same where the spacing differs by no more than a hundredth."""
    return [
        n if abs(mm / other - 1) <= _SAME_SPACING else max(round(n * mm / other), 1)
        for n, mm, other in zip(size, spacing, wanted, strict=True)
    ]


def _the_only_one(datasets: Sequence[str], results: Path) -> Path | None:
    methods = [name for name in method_names() if issubclass(get_method(name), PixelMethod)]
    found = [path for d in datasets for method in methods for path in finished_pretrainings(results, method, d)]
    if len(found) > 1:
        listed = "".join(f"\n  -alignment {path}" for path in found)
        raise UserError(f"{len(found)} finished pretrainings of these datasets can pair the volumes; add one of:"
                        f"{listed}\n  -alignment {POSITION} (none of them)")  # fmt: skip
    return found[0] if found else None


def _check_images(source: PretrainedEncoder, setup: Setup, allow: bool) -> None:
    axes, own = (plans.get("transpose_forward", [0, 1, 2]) for plans in (source.plans, setup.plans))
    if list(axes) != list(own):
        raise UserError(f"{source.path} saw volumes with the axes {axes} (transpose_forward) and these plans order "
                        f"them as {own}; pretrain an encoder with these axes, or add "
                        f"-alignment {POSITION}")  # fmt: skip
    given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
    warn_of_images(given, setup.images, allow)

"""SAM: self-supervised anatomical embeddings (Yan et al., IEEE TMI 2022).

Two crops of a volume, each with its own scale, show the same anatomy at known positions. The cells of two feature maps
get unit vectors: fine ones at about half the resolution, and coarse ones that see the whole body region. Cells at the
same position attract each other and repel hard negatives from the two crops; coarse ones also repel cells of other
volumes. The mean of both similarities finds a point of one patient in another (`nnssl_match`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.methods.base import Batch, Sample, StepOutput, Volume, ascending, at_least, formerly_fixed, positive
from nnssl.methods.sam.loss import Cells, Pairs, coarse_loss, fine_loss
from nnssl.methods.sam.pairs import Views, cells_of_views, coarse_pairs, fine_pairs
from nnssl.methods.shared.augment import unit_noise
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.shared.pixel_method import PixelConfig, PixelMethod
from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.encodings import EncodingHead
from nnssl.networks.pyramid import FeaturePyramid

_WINDOW_CT = 4095.0  # width of the code's window [-1024, 3071] in HU
_WINDOW_OTHERS = 2350.0  # the whole range, in the units of `Volume.hu_affine`
_FEWEST_CELLS = 4  # along each axis of a patch's coarse map; the code has 8 x 6 x 6


@dataclass(frozen=True, kw_only=True)
class SamConfig(PixelConfig):
    """Hyper-parameters of SAM; [C] is from the authors' code, [D] ours (methods.md 5.1, 5.3, 5.4).

    Distances suit the code's voxels of 2 mm. The published samplers either draw the overlap of the two crops on each
    axis (DeepLesion) or put both around a common point (lymph nodes), and a fifth of the pairs is independent, so that
    6 % and 9.5 % do not overlap. Here the first crop contains a body voxel, and the second is uniform over all
    positions that overlap enough, much as in the sampler for lymph nodes.
    """

    num_epochs: int = 200  # x 100 steps = 20,000 steps [C]
    steps_per_epoch: int = 100
    optimiser: Literal["adam", "adamw", "sgd"] = "sgd"  # [C]
    learning_rate: float = 0.02  # [C]
    momentum: float = 0.9  # [C]
    weight_decay: float = 1e-4  # [C]
    schedule: Literal["constant", "cosine"] = "constant"  # [C]
    warmup_steps: int = 500  # [C], linear
    gradient_clip: float | None = 10.0  # [D], for outliers only: norms of 2 to 5 are usual
    scale_range: float = 0.2  # [C]
    least_overlap: float = 0.125  # [D], LAPN's; the code has pairs without any
    points_per_pair: int = 2000  # body points of the overlap, from which the fine queries are drawn [C]
    noise_sigma_hu: tuple[float, float] = formerly_fixed((0.0, 4.095))  # up to a thousandth of the window [C]
    embedding_dim: int = 128  # of both [C]
    fine_level: int | None = None  # of the decoder's maps, 0 the finest; None: the finest of stride 2 [C] or more
    coarse_level: int | None = None  # None: the coarsest on which a patch has 4 cells or more along each axis
    temperature: float = 0.5  # [C]
    fine_queries: int = 100  # per view [C]
    fine_positive_mm: float = 2.0  # the nearest cell of the other view is a positive if nearer than this [C]
    fine_ignore_mm: float = 20.0  # cells nearer to the query are not negatives [C]
    fine_ranked: int = 2000  # hardest cells of both views, by the sum of both similarities [C]
    fine_negatives: int = 500  # drawn from these [C]
    coarse_queries: int = 512  # per view, at most [D]; all cells [C], 288 there
    coarse_positive_mm: float = 25.0  # [C]
    coarse_positive_slice_mm: float = 6.0  # along Z [C]; 8 for the first view, by a literal in the code
    coarse_ignore_mm: float = 5.0  # [C]
    coarse_ranked: int = 250  # [C]
    coarse_negatives: int = 200  # drawn from these [C]
    global_negatives: int = 1000  # cells of other volumes of the same process [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "embedding_dim", "fine_queries", "fine_ranked", "fine_negatives", "coarse_queries",
                 "coarse_ranked", "coarse_negatives")  # fmt: skip
        at_least(self, 0, "global_negatives", "fine_ignore_mm", "coarse_ignore_mm", "fine_level", "coarse_level")
        positive(self, "temperature", "fine_positive_mm", "coarse_positive_mm", "coarse_positive_slice_mm")
        ascending(self, 0, 10_000, "noise_sigma_hu")
        for kind in ("fine", "coarse"):
            negatives = getattr(self, f"{kind}_negatives")
            if negatives > getattr(self, f"{kind}_ranked"):
                raise UserError(f"{kind}_negatives are drawn from {kind}_ranked cells; set -o "
                                f"{kind}_ranked={negatives} or more")  # fmt: skip


@dataclass
class _Volume:
    """One volume of a step: maps (2, d, Z, Y, X) of both crops, coarse cells, matched points (M, 2, 3), number."""

    fine: Tensor
    coarse: Tensor
    coarse_cells: Cells
    views: Views
    points: Tensor
    number: Tensor
    generator: torch.Generator


class Sam(PixelMethod):
    """Fine and coarse embedding of two crops of every volume, and the contrast between their cells.

    Negatives are those of the process: with one volume a process there are none of other volumes.
    """

    config_class = SamConfig
    learns_from = "the same place in two crops, against the hardest other places"
    paper = (
        "Yan, K., Cai, J., Jin, D., Miao, S., Guo, D., Harrison, A. P., Tang, Y., Xiao, J., Lu, J., & Lu, L. (2022). "
        "SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in Radiological Images. IEEE Transactions "
        "on Medical Imaging, 41(10), 2658-2669."
    )
    collapse_cause = "few points a volume (-o points_per_pair=...) or a high learning_rate"
    host_keys = frozenset({"counts", "noise_seed", "draw_seed"})
    config: SamConfig

    def __init__(self, backbone: FeaturePyramid, config: SamConfig) -> None:
        super().__init__(backbone, config)
        backbone.leave_out_finer(self._head("fine").level)

    @classmethod
    def encoding_heads(cls, config: SamConfig, backbone: FeaturePyramid) -> dict[str, EncodingHead]:
        """Two heads, "fine" and "coarse"."""
        levels = zip(("fine", "coarse"), choose_levels(config, backbone), strict=True)
        return {name: EncodingHead(backbone, level, config.embedding_dim) for name, level in levels}

    @classmethod
    def check(cls, config: SamConfig, backbone: FeaturePyramid) -> None:
        """As for every method; also refuse networks with too few levels."""
        super().check(config, backbone)
        choose_levels(config, backbone)

    @classmethod
    def crops_per_pass(cls, config: SamConfig) -> int:
        """Both crops of all volumes."""
        return 2 * config.volumes

    @classmethod
    def sample(cls, volume: Volume, config: SamConfig, rng: np.random.Generator) -> Sample:
        """Draw two crops with matched points (`PixelMethod.sample`), their noise, and the seeds of the loss.

        Returns also:
            noise_sigma: (2, C) float32 deviation of each crop's noise, in the plans' normalised values.
            noise_seed, draw_seed: () int64, for the noise, and for the choice of queries and negatives.
        """
        sample = super().sample(volume, config, rng)
        window = np.where(volume.is_ct, _WINDOW_CT, _WINDOW_OTHERS) / volume.hu_affine[:, 1]
        low, high = config.noise_sigma_hu
        sigma = rng.uniform(low / _WINDOW_CT, high / _WINDOW_CT, (2, 1)) * window
        noise_seed, draw_seed = rng.integers(0, 2**63, 2, dtype=np.int64)
        seeds = {"noise_seed": np.asarray(noise_seed), "draw_seed": np.asarray(draw_seed)}
        return {**sample, **seeds, "noise_sigma": sigma.astype(np.float32)}

    def augment(self, batch: Batch) -> Batch:
        """`crops` (B, 2, C, *patch): the regions, resampled by each crop's scale, with noise."""
        views = super().augment(batch)
        for crops, sigma, seed in zip(views["crops"], views["noise_sigma"], views["noise_seed"].tolist(), strict=True):
            crops.addcmul_(unit_noise(seed, crops.shape, crops.device), sigma[..., None, None, None])
        return views

    def step(self, batch: Batch) -> StepOutput:
        """The mean over the volumes of the fine loss plus that of the coarse loss, of an augmented batch."""
        maps = in_parts(self._maps, self.config.accumulate, batch["crops"].flatten(0, 1))
        fine_maps, coarse_maps = (m.unflatten(0, (-1, 2)) for m in maps[:2])
        with torch.autocast(fine_maps.device.type, enabled=False):
            volumes = self._volumes(batch, fine_maps, coarse_maps)
            fine = [self._fine_term(volume) for volume in volumes]
            coarse = [self._coarse_term(volume, volumes) for volume in volumes]
            losses = [torch.stack([term.loss for term in terms]).mean() for terms in (fine, coarse)]
        terms = {
            "fine": losses[0].detach(),
            "coarse": losses[1].detach(),
            "similarity": torch.stack([term.similarity for term in fine]).mean(),
            "fine_pairs": torch.stack([term.pairs for term in fine]).sum(),
            "coarse_pairs": torch.stack([term.pairs for term in coarse]).sum(),
        }
        queries, positives = (torch.cat([getattr(term, name) for term in fine]) for name in ("queries", "positives"))
        return StepOutput(sum(map(torch.sum, maps[2:]), losses[0] + losses[1]), terms, queries, (queries, positives))

    def _maps(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Fine and coarse maps (M, d, ...) of crops (M, C, *P), and zeros (M,) that hold on to the finer levels."""
        pyramid = self.backbone(crops)
        fine = self._head("fine")
        # All parameters must take part: DistributedDataParallel waits for the gradient of each.
        idle = [level.flatten(1).mean(1) * 0 for level in pyramid[: fine.level] if level.numel()]
        return fine(pyramid), self._head("coarse")(pyramid), *idle

    def _head(self, name: str) -> EncodingHead:
        return cast(EncodingHead, self.heads[name])

    def _volumes(self, batch: Batch, fine: Tensor, coarse: Tensor) -> list[_Volume]:
        points = batch["points"][:, :, 1:].split(batch["counts"].tolist())
        volumes = []
        for i, seed in enumerate(batch["draw_seed"].tolist()):
            views = Views(*(batch[key][i] for key in Views._fields))
            cells = cells_of_views(coarse[i], self._head("coarse").stride, views)
            generator = torch.Generator(fine.device).manual_seed(seed)
            volumes.append(_Volume(fine[i], coarse[i], cells, views, points[i], batch["volume"][i], generator))
        return volumes

    def _fine_term(self, volume: _Volume) -> _Term:
        config, stride, size = self.config, self._head("fine").stride, volume.fine.shape[2:]
        cells = cells_of_views(volume.fine, stride, volume.views)
        pairs = fine_pairs(volume.points, cells, size, stride, volume.views, config.fine_queries,
                           config.fine_positive_mm, volume.generator)  # fmt: skip
        loss = fine_loss(cells, _interpolated(volume.coarse, size), pairs, config.fine_ignore_mm, config.fine_ranked,
                         config.fine_negatives, config.temperature, volume.generator)  # fmt: skip
        return _term(loss, cells, pairs)

    def _coarse_term(self, volume: _Volume, volumes: Sequence[_Volume]) -> _Term:
        config, cells, size = self.config, volume.coarse_cells, volume.coarse.shape[2:]
        pairs = coarse_pairs(cells, size, self._head("coarse").stride, volume.views, config.coarse_queries,
                             config.coarse_positive_mm, config.coarse_positive_slice_mm, volume.generator)  # fmt: skip
        elsewhere = _cells_elsewhere(volume, volumes, config.global_negatives)
        loss = coarse_loss(cells, *elsewhere, pairs, config.coarse_ignore_mm, config.coarse_ranked,
                           config.coarse_negatives, config.temperature, volume.generator)  # fmt: skip
        return _term(loss, cells, pairs)


class _Term(NamedTuple):
    """A loss, the mean cosine of its positives, their number, and queries and positives (Q, d).

    Only the loss has a gradient. The positive of a query without one is NaN.
    """

    loss: Tensor
    similarity: Tensor
    pairs: Tensor
    queries: Tensor
    positives: Tensor


@torch.no_grad()
def _term(loss: Tensor, cells: Cells, pairs: Pairs) -> _Term:
    queries, positives, count = cells.vectors[pairs.query], cells.vectors[pairs.positive], pairs.valid.sum()
    cosines = (queries * positives).sum(1) * pairs.valid
    positives = positives.masked_fill(~pairs.valid[:, None], torch.nan)
    return _Term(loss, cosines.sum() / count.clamp(min=1), count.float(), queries, positives)


def choose_levels(config: SamConfig, backbone: FeaturePyramid) -> tuple[int, int]:
    """Choose the levels of the decoder for the fine and the coarse embedding.

    Raises:
        UserError: the network has too few levels, or the options name levels that do not exist.
    """
    patch, last = config.patch, len(backbone.strides) - 1
    fine, coarse = config.fine_level, config.coarse_level
    if fine is None:
        fine = next((i for i, stride in enumerate(backbone.strides) if max(stride) > 1), last)
    if coarse is None:
        deep = [i for i, stride in enumerate(backbone.strides)
                if all(p >= _FEWEST_CELLS * s for p, s in zip(patch, stride, strict=True))]  # fmt: skip
        coarse = max([*deep, fine + 1])
    if not fine < coarse <= last:
        raise UserError(f"SAM needs a fine and a coarser one of the decoder's levels 0 to {last}, not {fine} and "
                        f"{coarse}; set -o fine_level=... coarse_level=..., or choose plans with more stages with "
                        f"-p")  # fmt: skip
    return fine, coarse


@torch.no_grad()
def _interpolated(coarse: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate the coarse maps (2, d, ...) at the fine cells: (M, d) unit vectors in the order of `Cells`."""
    wide = l2_normalise(F.interpolate(coarse, size=tuple(size), mode="trilinear"), dim=1)
    return wide.permute(0, 2, 3, 4, 1).reshape(-1, wide.shape[1])


def _cells_elsewhere(volume: _Volume, volumes: Sequence[_Volume], most: int) -> tuple[Tensor, Tensor]:
    """Random coarse cells of other volumes: (G, d) vectors with gradient, and (G,) bool which of them are usable."""
    usable = torch.cat([v.coarse_cells.usable & (v.number != volume.number) for v in volumes])
    keys = torch.rand(len(usable), generator=volume.generator, device=usable.device).masked_fill_(~usable, -1.0)
    chosen = keys.topk(min(most, len(keys))).indices
    return torch.cat([v.coarse_cells.vectors for v in volumes])[chosen], usable[chosen]

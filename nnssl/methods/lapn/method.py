"""LAPN: anatomical encodings of single voxels by momentum contrast (methods.md 5; FLARE 2023).

Two crops of a volume overlap. The encoding of a point in the first crop should equal the momentum network's encoding of
the same point in the second, and differ from its encodings of other points in earlier steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nnssl.core.distributed import gather_rows, row_counts
from nnssl.methods.base import Batch, StepOutput, at_least, below_one
from nnssl.methods.lapn.loss import KeyQueue, queue_info_nce
from nnssl.methods.shared.info_nce import LEAST_TEMPERATURE
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.shared.pixel_method import PixelConfig, PixelMethod
from nnssl.networks.contrastive import MomentumNetworks, begin_equal
from nnssl.networks.encodings import EncodingHead
from nnssl.networks.pyramid import FeaturePyramid


@dataclass(frozen=True, kw_only=True)
class LapnConfig(PixelConfig):
    """Hyper-parameters of LAPN; [P] is from the paper, [D] ours (methods.md 5)."""

    num_epochs: int = 500  # [P]
    steps_per_epoch: int = 250  # [D]
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"  # [P]
    learning_rate: float = 1e-4  # [P]
    schedule: Literal["constant", "cosine"] = "cosine"  # [P]
    points_per_pair: int = 1024  # [D]
    least_overlap: float = 0.125  # [P]; of the larger crop [D]
    scale_range: float = 0.1  # up to 10 % [P]; independent for each crop, uniform, equal on all axes [D]
    encoding_dim: int = 64  # [P]
    temperature: float = 0.07  # [D]; 0.5 in SAM
    key_momentum: float = 0.999  # [D]
    queue_size: int = 16384  # [D]
    exclude_radius_mm: float = 10.0  # keys within this distance in the query's volume are not negatives [D]
    negatives: Literal["queue", "batch"] = "queue"  # earlier keys [P]; the other keys of the step, as in SAM
    symmetric: bool = False  # a second term with the crops' roles swapped

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "encoding_dim", "queue_size")
        at_least(self, 0, "exclude_radius_mm")
        at_least(self, LEAST_TEMPERATURE, "temperature")
        below_one(self, "key_momentum")


class Lapn(PixelMethod):
    """Queries of the first crops, keys of the second ones, and the queue of earlier keys.

    The queue of every process has the keys of all processes. It changes in training only, after the loss of a step.
    """

    config_class = LapnConfig
    learns_from = "the same point in two crops, against points of earlier steps"
    paper = (
        "Zhuang, M., & Wang, H. (2023). Unsupervised Representation Learning of Medical Images for Downstream "
        "Segmentation. MICCAI FLARE challenge."
    )
    collapse_cause = "few volumes a step (-o batch_size=...) or an unfit temperature (-o temperature=...)"
    of_the_run: ClassVar[tuple[str, ...]] = ("queue.",)  # it identifies volumes by their numbers in this run
    config: LapnConfig

    def __init__(self, backbone: FeaturePyramid, config: LapnConfig) -> None:
        super().__init__(backbone, config)
        self.key_network = MomentumNetworks(**self.student())
        self.queue = KeyQueue(config.queue_size, config.encoding_dim) if config.negatives == "queue" else None
        begin_equal(self, "key_network")

    @classmethod
    def encoding_heads(cls, config: LapnConfig, backbone: FeaturePyramid) -> dict[str, EncodingHead]:
        """One head, "fine", on the finest level."""
        return {"fine": EncodingHead(backbone, 0, config.encoding_dim)}

    def step(self, batch: Batch) -> StepOutput:
        """InfoNCE of the matched points of an augmented batch (methods.md 5.3)."""
        config, crops, points, places, counts = (
            self.config,
            *(batch[k] for k in ("crops", "points", "places", "counts")),
        )
        roles = ((0, 1), (1, 0)) if config.symmetric else ((0, 1),)  # of the query's crop and of the key's
        with torch.no_grad():  # before the student's passes, whose activations stay
            keys = torch.cat([self._encode(self.key_network, crops[:, k], points[:, k], counts) for _, k in roles])
        queries = torch.cat([self._encode(self.student(), crops[:, q], points[:, q], counts) for q, _ in roles])
        places = places.repeat(len(roles), 1)
        negatives, their_places = self._negatives(keys, places)
        loss = queue_info_nce(
            queries, keys, negatives, config.temperature, places, their_places, config.exclude_radius_mm
        )
        terms = {
            "similarity": (queries.detach() * keys).sum() / max(len(keys), 1),
            "points": loss.new_full((), len(points)),
        }
        if self.queue is not None:
            terms["queue_filled"] = self.queue.filled().float().mean()
            if self.training:
                self.queue.enqueue(*_of_all_ranks(keys, places))
        return StepOutput(loss, terms, queries.detach(), (queries.detach(), keys))

    def after_step(self, step: int) -> None:
        """The momentum network follows the student."""
        self.key_network.follow(self.student(), self.config.key_momentum)

    def student(self) -> dict[str, Any]:
        """The networks that the momentum network follows."""
        return {"backbone": self.backbone, "heads": self.heads}

    def _encode(self, networks: Any, crops: Tensor, points: Tensor, counts: Tensor) -> Tensor:
        """Unit vectors (N, d) at points (N, 4) [crop, z, y, x] of crops (B, C, *P), counts (B,) of each."""
        backbone, head = networks["backbone"], networks["heads"]["fine"]
        return in_parts(lambda c, p: head.at(backbone(c), p), self.config.accumulate, crops, points=(points, counts))

    def _negatives(self, keys: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (M, d) and their places (M, 4); the loss excludes those near a query."""
        if self.queue is None:
            return _of_all_ranks(keys, places)
        return self.queue.vectors, self.queue.places


def _of_all_ranks(keys: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    counts = row_counts(keys)
    return gather_rows(keys, counts), gather_rows(places, counts)

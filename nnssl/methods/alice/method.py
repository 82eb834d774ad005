"""Alice: masked image modelling with anatomically aligned pairs (Jiang et al., ICCV 2023; methods.md 4).

A query crop and a key crop of another volume show the same place of the body. The student sees a quarter of the blocks
of both and reconstructs the others. Its vector of each crop should agree with a momentum target's vector of the other
one, augmented and whole, and its tokens with the target's tokens of the same crop.

`objective=code casa=code` is the authors' release on our networks, but that every crop has a mask of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.methods.alice.augment import TARGET_KEYS, TargetViewConfig, sample_target_views, target_views
from nnssl.methods.alice.heads import AliceDinoHead, MocoHead
from nnssl.methods.alice.loss import CentredCrossEntropy, CodeCasa, PaperCasa, cosine_distance, teacher_temperature
from nnssl.methods.alice.panels import pair_panels, pair_whereabouts
from nnssl.methods.base import Batch, Sample, StepOutput, Volume, at_least, below_one, formerly
from nnssl.methods.panel import Panel, Whereabouts
from nnssl.methods.shared.masked_method import MaskedMethod
from nnssl.methods.shared.parts import in_parts
from nnssl.networks.contrastive import BatchNormHead, MomentumNetworks, begin_equal
from nnssl.networks.pyramid import FeaturePyramid

_CODE_RECONSTRUCTION = 5.0  # weight of the mean error of both crops in the authors' code
_KINDS = ("across", "within")  # of agreement: of whole crops of two volumes, of the tokens of one crop


@dataclass(frozen=True, kw_only=True)
class AliceConfig(TargetViewConfig):
    """Hyper-parameters of Alice; [P] is from the paper, [C] from the authors' code, [D] ours.

    The paper's batch is 64, 8 on each of 8 GPUs; here it is the plans', for one GPU.
    """

    # code: DINO's loss and head, targets that are not augmented, all raw voxels, masks of whole columns
    objective: Literal["paper", "code"] = "paper"
    # of objective=paper: MoCo v3's projector and predictor [P], or DINO's head [C] without a predictor
    head: Literal["moco", "dino"] = formerly("dino", "moco")
    standardise: bool = True  # of head=dino: standardise its vectors over the step, or they collapse to one point [D]
    casa: Literal["paper", "code"] = "paper"  # code: add the query, which makes both sides similar [C]
    across_weight: float = 1.0  # of the agreement of the two volumes [P] [C]
    within_weight: float = 1.0  # of the agreement of the two views of a volume [P] [C]
    head_dim: int = 512  # [C]
    head_hidden: int = 2048  # of the head, and of the predictors of head=moco [C]
    head_bottleneck: int = 256  # of DINO's head [C]
    casa_hidden: int = 2048  # of casa=code [C]
    match_threshold: float = 0.7  # least mean cosine of query and key point [C]
    match_draws: int = 101  # attempts to draw a point; then the last one is taken [C]
    match_back_mm: float | None = None  # the match must lead back to within this distance; none: not checked [D]
    target_momentum: float = 0.996  # rises to 1 with the steps, a half cosine [C]

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "head_dim", "head_hidden", "head_bottleneck", "casa_hidden", "match_draws")
        at_least(self, 0, "across_weight", "within_weight", "match_back_mm")
        below_one(self, "target_momentum")

    @property
    def moco(self) -> bool:
        """Whether the heads are MoCo v3's."""
        return self.objective == "paper" and self.head == "moco"


class Vectors(NamedTuple):
    """What is compared of M crops."""

    whole: Tensor  # (M, d)
    tokens: Tensor  # (M, N, d), the context of CASA


class Alice(MaskedMethod):
    """Query and key of a batch, student and target, and their agreement.

    Axis 1 of a batch is (query, key). The head reads tokens of the encoder's width, so that the target's head can
    follow the student's; a linear layer brings the decoder's tokens to that width.

    With MoCo v3's head, the student's vectors pass a predictor before they are compared, whole crops and tokens each
    their own. Rows of a batch norm are all tokens of the step's crops, or its crops, of the student or of the target.
    """

    config_class = AliceConfig
    learns_from = "filling in the hidden blocks of crops of two volumes that show the same place"
    paper = (
        "Jiang, Y., Sun, M., Guo, H., Bai, X., Yan, K., Lu, L., & Xu, M. (2023). Anatomical Invariance Modeling and "
        "Semantic Alignment for Self-supervised Learning in 3D Medical Image Segmentation. ICCV."
    )
    pairs_volumes = True
    crops_per_sample: ClassVar[int] = 2
    of_the_run: ClassVar[tuple[str, ...]] = ("centres.", "temperature")  # they fit this run's vectors
    collapse_cause = (
        "few volumes a step (-o batch_size=...), pairs that do not show the same place (-alignment), or a head without "
        "batch norm (-o head=moco has one)"
    )
    config: AliceConfig
    temperature: Tensor

    def __init__(self, backbone: FeaturePyramid, config: AliceConfig) -> None:
        super().__init__(backbone, config)
        width, dim, hidden = self.tokens.width, config.head_dim, config.head_hidden
        code = config.objective == "code"
        self.bridge = nn.Linear(config.decoder_width, width)
        self.head: MocoHead | AliceDinoHead = (
            MocoHead(width, hidden, dim)
            if config.moco
            else AliceDinoHead(width, hidden, config.head_bottleneck, dim, config.standardise and not code)
        )
        self.predictors = (
            nn.ModuleDict({kind: BatchNormHead((dim, hidden, dim)) for kind in _KINDS}) if config.moco else None
        )
        # the code's student has a last layer for tokens alone, the target does not
        self.token_directions = nn.Linear(config.head_bottleneck, dim, bias=False) if code else None
        self.casa: nn.Module = (
            PaperCasa(dim, width, bias=not config.moco) if config.casa == "paper" else CodeCasa(dim, config.casa_hidden)
        )
        self.target = MomentumNetworks(**self.student())
        self.centres = nn.ModuleDict({kind: CentredCrossEntropy(dim) for kind in _KINDS if code})
        self.register_buffer("temperature", torch.tensor(teacher_temperature(0)))
        begin_equal(self, "target")

    @classmethod
    def check(cls, config: AliceConfig, backbone: FeaturePyramid) -> None:
        """As for every masked method; also refuse a single pair, and the code's CASA on the other head."""
        super().check(config, backbone)
        normalises = config.objective == "paper" and (config.head == "moco" or config.standardise)
        if normalises and config.batch_size == 1:
            raise UserError("alice normalises its vectors over the pairs of a step, and the two crops of a single pair "
                            "would become opposites; set -o batch_size=2 or more")  # fmt: skip
        if config.moco and config.casa == "code":
            raise UserError("casa=code asks with what DINO's head makes of a token; add -o head=dino")

    @classmethod
    def maskable(cls, grid: list[int], config: AliceConfig) -> list[int]:
        """Whole columns along the first axis with the code's objective."""
        return [1, *grid[1:]] if config.objective == "code" else grid

    @property
    def normalises(self) -> bool:
        """False for the code's objective, which predicts raw values."""
        return self.config.objective == "paper"

    @classmethod
    def sample(cls, volume: Volume, config: AliceConfig, rng: np.random.Generator) -> Sample:
        """Draw a query crop around a point of the volume, and a key crop around its match in another one.

        Returns arrays, for C channels and a patch P; the first axis is (query, key):
            crops: (2, C, *P) float32, the plans' normalised values, with zeros outside of the volume.
            starts, sizes: (2, 3) first voxels of the crops, and sizes of the volumes.
            spacing: (2, 3) mm.
            mask_seeds: (2,).
            similarity: () of the two places, NaN if unknown.
            others: () number of the key's volume.
            and the parameters of the target views.
        """
        match = volume.match(rng)
        volumes, patch = (volume, match.other), np.asarray(config.patch_size)
        starts = np.stack([match.point, match.other_point]) - patch // 2
        affine, is_ct = (np.stack([getattr(v, name) for v in volumes]) for name in ("hu_affine", "is_ct"))
        return {
            "crops": np.stack([v.read(start, start + patch) for v, start in zip(volumes, starts, strict=True)]),
            "starts": starts,
            "sizes": np.stack([v.size for v in volumes]),
            "spacing": np.array([v.spacing for v in volumes], dtype=np.float32),
            "mask_seeds": rng.integers(0, 2**63, 2, dtype=np.int64),
            "similarity": np.float32(match.similarity),
            "others": np.int64(match.other.index),
            **sample_target_views(rng, affine, is_ct, config),
        }

    def augment(self, batch: Batch) -> Batch:
        """Add the masks, and `targets` (B, 2, C, *P) that the target sees whole: crops, augmented in the paper."""
        crops = batch["crops"]
        parameters = {name: batch[name].flatten(0, 1) for name in TARGET_KEYS}
        if self.config.objective == "code":
            targets = crops
        else:
            targets = target_views(crops.flatten(0, 1), batch["spacing"].flatten(0, 1), parameters).view_as(crops)
        kept = {name: value for name, value in batch.items() if name not in (*TARGET_KEYS, "spacing")}
        return {**super().augment(kept), "targets": targets}

    def step(self, batch: Batch) -> StepOutput:
        """Reconstruction and both agreements of an augmented batch (methods.md 4.3)."""
        config = self.config
        crops, hidden, inside = (batch[name].flatten(0, 1) for name in ("crops", "hidden", "inside"))
        with torch.no_grad():  # before the student's pass, whose activations stay
            goals = self._goals(batch["targets"].flatten(0, 1))
        visible, decoded = self.encode(crops, hidden, batch["hidden_on_host"].flatten(0, 1))
        vectors = self._vectors(visible, decoded)
        query = self._query(visible)
        seen = self.head.within(self.casa(query, vectors.tokens))
        with torch.no_grad():
            wanted = cast(Any, self.target)["head"].within(self.casa(query, goals.tokens))
        whole, other = self._predicted("across", vectors.whole), goals.whole.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        across = self._agreement("across", whole, other)
        within = self._agreement("within", self._predicted("within", seen), wanted)
        counted = hidden & inside if config.objective == "paper" else torch.ones_like(hidden)
        error = self.reconstruction_error(crops, decoded, counted).mean()
        # the paper adds the errors of query and key
        reconstruction = error * (2 if config.objective == "paper" else _CODE_RECONSTRUCTION)
        loss = reconstruction + config.across_weight * across + config.within_weight * within
        terms = {"reconstruction": reconstruction, "across": across, "within": within}
        if not self.training and len(batch["crops"]) > 1:
            terms["across_shuffled"] = self._of_other_pairs(whole, other)
        own = vectors.whole.detach()
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, own, (own, other))

    def _vectors(self, visible: Tensor, decoded: Tensor) -> Vectors:
        """The student's vectors, from the tokens (M, n, w) of visible blocks and the decoded ones (M, N, v) of all."""
        if self.config.objective == "code":
            return Vectors(self.head(visible.mean(1)), self.head(self.bridge(decoded), self.token_directions))
        tokens = self.head(self.bridge(decoded))
        return Vectors(self.head.across(tokens.mean(1)), tokens)

    def _query(self, visible: Tensor) -> Tensor:
        """What CASA asks with: visible tokens, or in the code what DINO's head makes of them."""
        if isinstance(self.head, AliceDinoHead) and self.config.casa == "code":
            return self.head.plain(visible, self.token_directions)
        return visible

    def _goals(self, targets: Tensor) -> Vectors:
        """The target's vectors of whole crops (M, C, *P)."""
        networks: Any = self.target
        head, accumulate = networks["head"], self.config.accumulate
        encoded = in_parts(lambda x: networks["tokens"](networks["backbone"], x, self.grid), accumulate, targets)
        if self.config.objective == "code":
            everywhere = torch.arange(encoded.shape[1], device=encoded.device).expand(len(encoded), -1)
            decoded = networks["decoder"](encoded, everywhere, self.grid)
            return Vectors(head(encoded.mean(1)), head(networks["bridge"](decoded)))
        tokens = head(encoded)
        return Vectors(head.across(tokens.mean(1)), tokens)

    def _predicted(self, kind: str, student: Tensor) -> Tensor:
        """What the student predicts of the target's vectors from its own."""
        if self.predictors is None:
            return student
        predicted: Tensor = self.predictors[kind](student)
        return predicted

    def _agreement(self, kind: str, student: Tensor, target: Tensor) -> Tensor:
        """Agreement of the two pairs of each sample: their sum in the paper, their mean in the code."""
        if self.config.objective == "paper":
            return 2 * cosine_distance(student, target)
        centred = cast(CentredCrossEntropy, self.centres[kind])
        loss: Tensor = centred(student, target, self.temperature)
        if self.training:
            centred.follow(target)
        return loss

    def _of_other_pairs(self, student: Tensor, target: Tensor) -> Tensor:
        """`across` of the same vectors (2 B, d) where each meets those of all other pairs of the step instead."""
        shuffled = [target.roll(2 * by, 0) for by in range(1, len(target) // 2)]
        return torch.stack([self._agreement("across", student, other) for other in shuffled]).mean()

    def after_step(self, step: int) -> None:
        """The target follows the student, and the temperature becomes that of the next step."""
        config = self.config
        self.target.follow(
            self.student(), momentum_at(step, config.num_epochs * config.steps_per_epoch, config.target_momentum)
        )
        self.temperature.fill_(teacher_temperature((step + 1) // config.steps_per_epoch))

    def student(self) -> dict[str, Any]:
        """The networks that the target follows."""
        networks: dict[str, Any] = {"backbone": self.backbone, "tokens": self.tokens, "head": self.head}
        if self.config.objective == "code":
            networks |= {"decoder": self.decoder, "bridge": self.bridge}
        return networks

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """For up to two pairs, a row for the query and one for the key."""
        return pair_panels(batch)

    @classmethod
    def whereabouts(cls, batch: Batch, config: Any) -> list[Whereabouts]:
        """The query's crop in the sample's volume, and the key's in the other one."""
        return pair_whereabouts(batch, config.patch)


def momentum_at(step: int, steps: int, first: float) -> float:
    """The target's momentum after step 0, 1, ... of `steps`: a half cosine from `first` to 1 (DINO)."""
    return 1 - (1 - first) * 0.5 * (1 + cos(pi * step / steps))

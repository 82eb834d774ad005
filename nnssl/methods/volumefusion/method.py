"""Volume Fusion: a network segments how much of another volume was mixed into each voxel (Wang et al., 2023).

"MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale Unannotated Dataset", arXiv
2306.16925, with its refinement in IEEE TIP 34 (2025): a crop of one volume (background) and a crop of another one
(foreground) are fused in boxes of different mixing weights, and the weight's class is the label of the voxel. Encoder
and decoder are pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.core.geometry import random_crop_start
from nnssl.core.sending import send
from nnssl.methods.base import Batch, Method, Sample, StepOutput, Volume
from nnssl.methods.panel import Panel
from nnssl.methods.shared.augment import (
    WINDOW_KEYS,
    WindowIntensityConfig,
    apply_window_intensity,
    sample_window_intensity,
    unit_noise,
)
from nnssl.methods.shared.hidden_blocks import slice_panel, value_range
from nnssl.methods.shared.overlapping_crops import boxes_of_crops
from nnssl.methods.shared.parts import in_parts
from nnssl.methods.shared.spatial import SPATIAL_KEYS, SpatialConfig, apply_spatial, sample_spatial
from nnssl.methods.volumefusion.fusion import FusionConfig, class_maps, fused, sample_boxes
from nnssl.methods.volumefusion.loss import accuracies, fusion_loss
from nnssl.networks.pyramid import FeaturePyramid

_SHOWN = 4  # volumes of the pictures


@dataclass(frozen=True, kw_only=True)
class VolumeFusionConfig(SpatialConfig, WindowIntensityConfig, FusionConfig):
    """Hyper-parameters of Volume Fusion; [R] is from the recipe that a comparison of methods shares, [D] ours.

    Batch and patch are the plans'; the recipe has 8 fused crops a step with patches of 160^3.
    """

    num_epochs: int = 1000  # x 250 steps [R]
    steps_per_epoch: int = 250
    optimiser: Literal["adam", "adamw", "sgd", "nesterov"] = "nesterov"  # [R]
    learning_rate: float = 1e-2  # [R]
    momentum: float = 0.99  # [R]
    weight_decay: float = 3e-5  # [R]
    schedule: Literal["constant", "cosine", "poly"] = "poly"  # [R]
    gradient_clip: float | None = 12.0  # [R]


class VolumeFusion(Method):
    """Crops of two volumes, their mixture, and the segmentation of its weights.

    The second volume is a random other one for every sample, in place of the next one of the batch, so that a step does
    not depend on the number of processes.
    """

    config_class = VolumeFusionConfig
    levels = "decoder"
    learns_from = "telling in which share another volume is mixed into each voxel"
    paper = (
        "Wang, G., Wu, J., Luo, X., Liu, X., Li, K., & Zhang, S. (2023). MIS-FM: 3D Medical Image Segmentation using "
        "Foundation Models Pretrained on a Large-Scale Unannotated Dataset. arXiv:2306.16925."
    )
    host_keys = frozenset({
        "starts", "sizes", "spacing", "hu_affine", "is_ct", "boxes", "box_classes", *SPATIAL_KEYS, *WINDOW_KEYS
    })  # fmt: skip
    collapses = False  # means of maps, which are alike in a network that segments too; `accuracy` tells of a fault
    config: VolumeFusionConfig

    def __init__(self, backbone: FeaturePyramid, config: VolumeFusionConfig) -> None:
        super().__init__(backbone, config)
        stride, width = backbone.strides[0], backbone.channels[0]
        self.head: nn.Module = (
            nn.Conv3d(width, config.classes, 1)
            if stride == (1, 1, 1)
            else nn.ConvTranspose3d(width, config.classes, stride, stride)  # of tokens: a linear layer to their voxels
        )

    @classmethod
    def sample(cls, volume: Volume, config: VolumeFusionConfig, rng: np.random.Generator) -> Sample:
        """Draw a crop of the volume and one of another volume, each around a random voxel of the body.

        Returns arrays, for C channels and a patch P; the first axis is (background, foreground):
            crops: (2, C, *P) float32, the plans' normalised values, with zeros outside of the volume.
            starts, sizes: (2, 3) first voxels of the crops, and sizes of the volumes.
            spacing: (2, 3) mm.
            hu_affine, is_ct: (2, C, 2) and (2, C), see `Volume`.
            and the boxes and the parameters of the augmentation.
        """
        patch, volumes = np.asarray(config.patch), (volume, volume.match(rng).other)
        starts = np.stack([random_crop_start(rng, v.random_body_voxel(rng), patch, v.size) for v in volumes])
        return {
            "crops": np.stack([v.read(start, start + patch) for v, start in zip(volumes, starts, strict=True)]),
            "starts": starts,
            "sizes": np.stack([v.size for v in volumes]),
            "spacing": np.array([v.spacing for v in volumes], dtype=np.float32),
            "hu_affine": np.stack([v.hu_affine for v in volumes]),
            "is_ct": np.stack([v.is_ct for v in volumes]),
            **sample_boxes(rng, config.patch, config),
            **sample_spatial(rng, 2, config),
            **sample_window_intensity(rng, 2, config),
        }

    def augment(self, batch: Batch) -> Batch:
        """Augment both crops of each sample and fuse them.

        Returns:
            `crops` (B, C, *P); `classes` (B, 1, *P) uint8; `counted` (B, 1, *P) bool, the voxels that show a place of
            both volumes; `starts`.
        """
        given, one_by_one = batch["crops"], {name: x.flatten(0, 1) for name, x in batch.items() if x.ndim > 1}
        boxes, box_classes = send([batch["boxes"], batch["box_classes"]], given.device)
        moved, inside = apply_spatial(
            one_by_one["crops"], one_by_one["spacing"], one_by_one, one_by_one["starts"], one_by_one["sizes"]
        )
        noise = torch.cat([unit_noise(int(seed), given.shape[1:], given.device) for seed in batch["noise_seed"]])
        changed = apply_window_intensity(moved, one_by_one, noise, one_by_one["hu_affine"], one_by_one["is_ct"])
        background, foreground = changed.view_as(given).unbind(1)
        classes = class_maps(boxes, box_classes, given.shape[3:])
        counted = inside.unflatten(0, given.shape[:2]).all(1)
        crops = fused(background, foreground, classes, self.config.classes)
        return {"crops": crops, "classes": classes, "counted": counted, "starts": batch["starts"]}

    def predict(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, *P) of fused crops (B, C, *P), and the pooled coarsest map (B, d)."""
        return in_parts(self._predict, self.config.accumulate, crops)

    def _predict(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.backbone(crops)
        return self.head(pyramid[0]), pyramid[-1].detach().flatten(2).mean(2)

    def step(self, batch: Batch) -> StepOutput:
        """Mean loss of the crops; the embeddings are the pooled coarsest maps."""
        classes, counted = batch["classes"], batch["counted"]
        logits, pooled = self.predict(batch["crops"])
        shares = accuracies(logits, classes, counted)
        terms = {"accuracy": shares.mean(), **{f"accuracy_{k}": told for k, told in enumerate(shares.unbind())}}
        return StepOutput(fusion_loss(logits, classes, counted).mean(), terms, pooled)

    @classmethod
    def crop_boxes(cls, batch: Batch, config: Any) -> Tensor | None:
        """The crop of each sample's own volume."""
        return boxes_of_crops(batch["starts"][:, :1], config.patch)

    @classmethod
    def panels(cls, batch: Batch, config: Any) -> list[list[Panel]]:
        """Fused crops of up to four samples with their mixing weights, black for 0 and white for 1."""
        pairs = zip(batch["crops"][:_SHOWN, 0].numpy(), batch["classes"][:_SHOWN, 0].numpy(), strict=True)
        return [
            [
                slice_panel(crop, f"volume {number}: fused", values=value_range(crop), of=(number - 1, 0)),
                slice_panel(
                    classes, f"volume {number}: mixing weights", values=(0, config.classes - 1), of=(number - 1, 0)
                ),
            ]
            for number, (crop, classes) in enumerate(pairs, start=1)
        ]

    @torch.no_grad()
    def reconstruction(self, batch: Batch) -> list[list[Panel]]:
        """For up to four samples: the fused crop, its mixing weights, and those that the network sees."""
        shown = {name: batch[name][:_SHOWN].float().cpu() for name in ("crops", "classes")}
        told = self.predict(batch["crops"][:_SHOWN])[0].argmax(1).cpu().numpy()
        rows = self.panels(shown, self.config)
        for number, (row, classes) in enumerate(zip(rows, told, strict=True), start=1):
            row.append(slice_panel(classes, f"volume {number}: predicted", values=(0, self.config.classes - 1)))
        return rows

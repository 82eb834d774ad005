"""A classifier as a file: a frozen backbone, a linear head on the mean of its features over the body, what it names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.checkpoints.files import check_entries, load_content, save_checkpoint
from nnssl.checkpoints.loading import load_whole
from nnssl.checkpoints.pretrained import Pretrained
from nnssl.classification.heads import Floats, LinearHead
from nnssl.classification.labels import Target
from nnssl.classification.windows import window_vector, windows
from nnssl.core.errors import UserError
from nnssl.core.files import checked
from nnssl.core.own_files import ClassifierFile
from nnssl.features.body import body_vector
from nnssl.features.components import Projection
from nnssl.features.model import PretrainedModel
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import Stride

MODEL = "model.pth"  # of the whole, or in the folder of each fold
BACKBONE = "backbone."
Way = Literal["frozen", "finetuned"]
_FIX = "give a folder that nnssl_classify wrote, unchanged"

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Network:
    """The backbone of a classifier, and what its images are prepared by.

    Args:
        content: `plans`, `configuration`, `dataset_json`, `orientation`, `config` and `method` of its checkpoint.
        state: of the backbone.
        levels: of the network that form the pyramid.
        finest: level that the network computes at the finest.
        level: that the head reads; None for all.
        patch_size: (Z, Y, X) voxels of a window.
    """

    content: Mapping[str, Any]
    state: Mapping[str, Tensor]
    levels: str
    finest: int
    level: int | None
    patch_size: Sequence[int]


@dataclass(frozen=True)
class Classifier:
    """A classifier of images.

    Args:
        path: of its file.
        model: the frozen backbone.
        level: of its pyramid that the head reads; None for all.
        head: on the mean of the features over the body.
        target: name of what it predicts.
        classes: their names; none for a number.
        way: how it was made.
        method: of the pretraining; says so where the weights were random.
    """

    path: Path
    model: PretrainedModel
    level: int | None
    head: LinearHead
    target: str
    classes: tuple[str, ...]
    way: Way
    method: str

    def vector(self, values: NDArray[np.float32], body: NDArray[np.bool_], device: str) -> Floats:
        """(D,) mean of the features over the body, as it was in the training; arguments as of `body_vector`."""
        if self.way == "finetuned" and self.level is not None:
            return window_vector(windows(self.model, self.level, values, body, device)).numpy()
        return body_vector(self.model, values, body, self.level, device).astype(np.float64)

    def predict(self, values: NDArray[np.float32], body: NDArray[np.bool_], device: str) -> Floats:
        """(K,) probabilities, or (1,) a number, of a preprocessed image."""
        return np.atleast_1d(self.head.predict(self.vector(values, body, device)[None])[0])

    @cached_property
    def evidence(self) -> Projection:
        """From features to scores (K,): the mean of the projected cells over the body is the score.

        These are the gradients of the scores by the mean features: Grad-CAM's weights, which for a linear head on a
        mean are those of CAM (Zhou et al., CVPR 2016; Selvaraju et al., ICCV 2017).
        """
        weights = self.head.weights
        nothing = np.zeros(weights.shape[1])
        return _Evidence(nothing, weights, np.zeros(len(weights)), self.level, bias=self.head.bias)


@dataclass(frozen=True)
class _Evidence(Projection):
    """To scores: what is added is the bias, whatever the mean."""

    bias: Floats = dataclasses.field(kw_only=True)

    @property
    def offset(self) -> Tensor:
        """(K,) the bias."""
        return torch.from_numpy(self.bias).float()


def save_classifier(file: Path, network: Network, head: LinearHead, target: Target, way: Way, method: str) -> None:
    """Write a classifier in one piece."""
    content = {key: network.content[key] for key in ("plans", "configuration", "dataset_json", "config")}
    save_checkpoint(
        {
            **content,
            "orientation": network.content.get("orientation"),
            "method": network.content["method"],
            "method_state": {f"{BACKBONE}{name}": tensor for name, tensor in network.state.items()},
            "classifier": {
                "target": target.name,
                "classes": list(target.classes),
                "way": way,
                "start": method,
                "levels": network.levels,
                "finest": network.finest,
                "level": network.level,
                "patch_size": [int(n) for n in network.patch_size],
                "weights": torch.from_numpy(head.weights),
                "bias": torch.from_numpy(head.bias),
            },
        },
        file,
    )  # fmt: skip


def load_classifier(file: Path, device: str = "cpu") -> Classifier:
    """Read a classifier; raises UserError where the file is none, or damaged."""
    content = check_entries(load_content(file), file)
    if "classifier" not in content:
        raise UserError(f"{file} is no classifier; {_FIX}")
    made = checked(content["classifier"], ClassifierFile, file, _FIX)
    levels = cast(Literal["encoder", "decoder"], made["levels"])
    state = {name[len(BACKBONE) :]: tensor for name, tensor in content["method_state"].items()}
    pretrained = Pretrained(file, content["method"], levels, content["plans"], content["configuration"],
                            content["dataset_json"], state, {}, content.get("orientation"),
                            content["config"], content["method"])  # fmt: skip
    backbone = build_backbone(pretrained.plans, pretrained.configuration, levels)
    backbone.leave_out_finer(made["finest"])
    load_whole(backbone, state, file)
    model = PretrainedModel(backbone, pretrained, cast(Stride, tuple(made["patch_size"]))).to(device)
    weights, bias, classes = made["weights"].numpy(), made["bias"].numpy(), tuple(made["classes"])
    if made["level"] is not None and made["level"] >= len(model.channels):
        raise UserError(f"{file}: its head reads level {made['level']} of {len(model.channels)}; {_FIX}")
    channels = sum(model.channels) if made["level"] is None else model.channels[made["level"]]
    if weights.shape != (max(len(classes), 1), channels) or bias.shape != weights.shape[:1]:
        raise UserError(f"{file}: its head has the shape {weights.shape} and its network {channels} features for "
                        f"{max(len(classes), 1)} scores; {_FIX}")  # fmt: skip
    head = LinearHead(weights, bias, bool(classes))
    return Classifier(file, model, made["level"], head, made["target"], classes, made["way"], made["start"])


def load_classifiers(model: str | Path, device: str = "cpu") -> list[Classifier]:
    """The classifier of a folder of `nnssl_classify`, or those of its folds, whose predictions are averaged.

    Raises:
        UserError: there is none, or a fold predicts something else than another.
    """
    path = Path(model)
    if path.is_file():
        return [load_classifier(path, device)]
    files = [path / MODEL] if (path / MODEL).is_file() else sorted(path.glob(f"fold_*/{MODEL}"))
    if not files:
        raise UserError(f"{path} holds no classifier; give the folder that nnssl_classify prints, or its {MODEL}")
    found = [load_classifier(file, device) for file in files]
    if len({(one.target, one.classes) for one in found}) > 1:
        raise UserError(f"the folds in {path} predict different targets or classes; train them anew with "
                        f"--overwrite")  # fmt: skip
    return found

"""Any 3D model of nnU-Net: a model folder, its zip, or one checkpoint."""

from __future__ import annotations

from nnssl.checkpoints.nnunet_model import is_nnunet, nnunet_weights, origin_of_training
from nnssl.interchange.facts import NNUNET
from nnssl.interchange.family import Family, Imported
from nnssl.interchange.opening import Opened


def _recognises(opened: Opened) -> bool:
    return opened.container == "network_weights" and is_nnunet(_content(opened))


def _read(opened: Opened) -> Imported:
    weights = nnunet_weights(_content(opened), opened.path)
    trainer = opened.rest.get("trainer_name", "a trainer")
    trained_on = weights.plans["dataset_name"]
    origin = origin_of_training(_content(opened), opened.path)
    return Imported(
        weights,
        title=f"nnU-Net {weights.configuration} of {trained_on}, {weights.plans['plans_name']}, {trainer}",
        licence=origin.get("licence"),
        citation=f"{NNUNET.removesuffix('.')}; and the work that trained this model",
        derived=bool(origin),
    )


def _content(opened: Opened) -> dict[str, object]:
    return {**opened.rest, "network_weights": dict(opened.tensors)}


FAMILY = Family(
    "nnunet", "any 3D nnU-Net model: a model folder, its zip or a checkpoint (TotalSegmentator, MultiTalent)",
    "its own", _recognises, _read,
)  # fmt: skip

"""CT-FM's encoder of MONAI's SegResNetDS. Its images are turned to S, P, L: the axes are z, y, x as nnU-Net's."""

from __future__ import annotations

from typing import Any

from nnssl.checkpoints.imported import Weights
from nnssl.interchange.family import CONFIGURATION, Family, Imported, Window, dataset_json_of, plans_of
from nnssl.interchange.names import below, left_of, numbered
from nnssl.interchange.opening import Opened

_SIGN = "conv_init.weight"
_NORM = "layers.0.blocks.0.norm1.running_mean"  # batch normalisation, which other SegResNetDS rarely have
_PARTS = ("conv_init.", "layers.")


def _recognises(opened: Opened) -> bool:
    found = below(opened.tensors, _SIGN)
    return found is not None and _NORM in found.inside


def _read(opened: Opened) -> Imported:
    found = below(opened.tensors, _SIGN)
    assert found is not None
    inside = {name: tensor for name, tensor in found.inside.items() if name.startswith(_PARTS)}
    filters, channels = inside[_SIGN].shape[:2]
    depth = numbered(inside, "layers.")
    kwargs: dict[str, Any] = {
        "init_filters": filters,
        "blocks_down": [numbered(inside, f"layers.{level}.blocks.") for level in range(depth)],
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (depth - 1),
    }
    architecture = {"network_class_name": "nnssl.networks.segresnet.SegResNetDS", "arch_kwargs": kwargs}
    window = Window(-1024.0, 2048.0)
    plans = plans_of("nnsslPlans_ct_fm", architecture, (3.0, 1.0, 1.0), (32, 128, 128), window, channels)
    taken = {f"{found.prefix}{name}" for name in inside}
    reasons = {"up_layers.": "the decoder, which CT-FM does not pretrain"}
    left = left_of((n for n in opened.tensors if n not in taken), reasons, "a head of the pretext task")
    state = {f"encoder.{name}": tensor for name, tensor in inside.items()}
    return Imported(
        Weights(plans, CONFIGURATION, "encoder", state, dataset_json_of(*["CT"] * channels), "LPS"),
        title="CT-FM, the encoder of SegResNetDS",
        licence="Apache-2.0",
        citation="Pai et al., Vision Foundation Models for Computed Tomography, 2025 (CT-FM)",
        url="https://huggingface.co/project-lighter/ct_fm_feature_extractor",
        left=left,
    )


FAMILY = Family(
    "ct_fm", "CT-FM: the encoder of SegResNetDS (CT, 1 x 1 x 3 mm)", "Apache-2.0", _recognises, _read
)  # fmt: skip

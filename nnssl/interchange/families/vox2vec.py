"""vox2vec's published weights: a bare state dict of FPN3d, trained on (x, y, z)."""

from __future__ import annotations

from nnssl.checkpoints.imported import Weights
from nnssl.interchange.family import (
    CONFIGURATION,
    Family,
    Imported,
    Window,
    dataset_json_of,
    plans_of,
    without_prefixes,
)
from nnssl.interchange.opening import Opened
from nnssl.interchange.transposing import transposed_kernels
from nnssl.methods.registry import get_method

_WRAPPERS = ("module.", "model.", "backbone.")
_SIGNS = {"first_conv.weight", "left_blocks.0.layers.0.layers.2.weight", "bottom_block.layers.0.layers.2.weight",
          "right_blocks.0.layers.0.layers.2.weight"}  # fmt: skip


def _recognises(opened: Opened) -> bool:
    return without_prefixes(opened.tensors, *_WRAPPERS).keys() >= _SIGNS


def _read(opened: Opened) -> Imported:
    state = transposed_kernels(without_prefixes(opened.tensors, *_WRAPPERS))
    base, channels = state["first_conv.weight"].shape[:2]
    scales = 1 + len({name.split(".")[1] for name in state if name.startswith("left_blocks.")})
    kwargs = {"base_channels": base, "num_scales": scales, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (scales - 1)}
    architecture = {"network_class_name": "nnssl.networks.fpn_unet.FPN3dUNet", "arch_kwargs": kwargs}
    plans = plans_of("nnsslPlans_vox2vec", architecture, (2.0, 1.0, 1.0), (32, 128, 128), Window(-1350.0, 1000.0),
                     channels, batch_size=10)  # fmt: skip
    return Imported(
        Weights(plans, CONFIGURATION, "decoder", state, dataset_json_of(*["CT"] * channels), made_by="vox2vec"),
        title=f"vox2vec, FPN3d({channels}, {base}, {scales})",
        licence="MIT",
        citation=get_method("vox2vec").paper,
        axes="xyz",
    )


FAMILY = Family(
    "vox2vec", "vox2vec: FPN3d as its authors publish it (CT, 1 x 1 x 2 mm)", "MIT", _recognises, _read
)  # fmt: skip

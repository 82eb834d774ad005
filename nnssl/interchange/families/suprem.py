"""SuPreM's supervised weights: the 3D U-Net of Models Genesis, MONAI's SegResNet and SwinUNETR; on (x, y, z)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnssl.checkpoints.imported import Weights
from nnssl.interchange.families.swinunetr import read_swin, swin_of
from nnssl.interchange.family import CONFIGURATION, Family, Imported, Window, dataset_json_of, plans_of
from nnssl.interchange.names import Found, below, left_of, numbered
from nnssl.interchange.opening import Opened
from nnssl.interchange.transposing import transposed_kernels

_UNET, _SEGRESNET = "down_tr64.ops.0.conv1.weight", "convInit.conv.weight"
_WINDOW, _SPACING, _PATCH = Window(-175.0, 250.0), (1.5, 1.5, 1.5), (96, 96, 96)
_CONTAINER, _HEADS = "net", ("precls_conv.", "organ_embedding")  # as only SuPreM's files have them
_REASONS = {
    "running_": "the network takes the statistics of its input in evaluation too",
    "num_batches": "the network takes the statistics of its input in evaluation too",
    "conv_final.2.": "a segmentation head", "out_tr.": "a segmentation head", "out.": "a segmentation head",
}  # fmt: skip
_ABOUT: dict[str, Any] = {
    "licence": "CC BY-NC-ND 4.0",
    "citation": "Li et al., How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?, ICLR 2024 (SuPreM)",
    "url": "https://github.com/MrGiovanni/SuPreM",
}


def _recognises(opened: Opened) -> bool:
    tensors = opened.tensors
    if not (opened.container.split(".")[-1] == _CONTAINER or any(head in name for head in _HEADS for name in tensors)):
        return False
    if below(tensors, _UNET) or below(tensors, _SEGRESNET):
        return True
    swin = swin_of(tensors)
    return swin is not None and not swin.is_v2


def _read(opened: Opened) -> Imported:
    if (unet := below(opened.tensors, _UNET)) is not None:
        return _read_unet(opened, unet)
    if (segresnet := below(opened.tensors, _SEGRESNET)) is not None:
        return _read_segresnet(opened, segresnet)
    swin = swin_of(opened.tensors)
    assert swin is not None
    left = left_of(swin.left, _REASONS, "of the universal model's heads")
    return read_swin(swin._replace(left=left), "nnsslPlans_suprem_swinunetr", _SPACING, _WINDOW,
                     title="SuPreM, SwinUNETR", **_ABOUT)  # fmt: skip


def _read_unet(opened: Opened, found: Found) -> Imported:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    state = {n: t for n, t in found.inside.items() if n.startswith(("down_tr", "up_tr")) and not n.endswith(statistics)}
    base, channels = state[_UNET].shape[:2]
    kwargs = {"base_channels": base, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3}
    return _imported(opened, found, state, "unet", "nnssl.networks.unet3d.UNet3D", kwargs, channels)


def _read_segresnet(opened: Opened, found: Found) -> Imported:
    parts = ("convInit.", "down_layers.", "up_layers.", "up_samples.", "conv_final.0.")
    state = {name: tensor for name, tensor in found.inside.items() if name.startswith(parts)}
    filters, channels = state[_SEGRESNET].shape[:2]
    depth = numbered(state, "down_layers.")
    kwargs = {
        "init_filters": filters,
        "blocks_down": [numbered(state, f"down_layers.{level}.", "conv1.") for level in range(depth)],
        "blocks_up": [numbered(state, f"up_layers.{level}.", "conv1.") for level in range(depth - 1)],
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (depth - 1),
    }
    return _imported(opened, found, state, "segresnet", "nnssl.networks.segresnet.SegResNet", kwargs, channels)


def _imported(
    opened: Opened, found: Found, state: Mapping[str, Tensor], name: str, network: str, kwargs: dict[str, Any],
    channels: int,
) -> Imported:  # fmt: skip
    architecture = {"network_class_name": network, "arch_kwargs": kwargs}
    plans = plans_of(f"nnsslPlans_suprem_{name}", architecture, _SPACING, _PATCH, _WINDOW, channels)
    taken = {f"{found.prefix}{inner}" for inner in state}
    left = left_of((n for n in opened.tensors if n not in taken), _REASONS, "of the universal model's heads")
    dataset_json = dataset_json_of(*["CT"] * channels)
    weights = Weights(plans, CONFIGURATION, "decoder", transposed_kernels(state), dataset_json, "RAS")
    return Imported(weights, title=f"SuPreM, {network.rsplit('.', 1)[-1]}", axes="xyz", left=left, **_ABOUT)


FAMILY = Family(
    "suprem", "SuPreM: U-Net, SegResNet and SwinUNETR (CT, 1.5 mm)", "CC BY-NC-ND 4.0", _recognises, _read
)  # fmt: skip

"""Every method at its paper's size, or at a toy size, as a `Setup` of the loop that needs no nnU-Net."""

from __future__ import annotations

import json
import pydoc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from nnssl.core.errors import UserError
from nnssl.data.loader import Cases
from nnssl.data.presets import presets
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration
from nnssl.networks.unet import UNetPyramid
from nnssl.pretraining.setup import Setup, resolve_sizes

CONFIGURATION = "3d_fullres"
RESENC = "ResEncL"  # nnU-Net's network of the published recipe, which has no preset here
PRESETS = {
    "vox2vec": "nnsslPlans_vox2vec",
    "voco": "nnsslPlans_voco",
    "pimpic": "nnsslPlans_pimpic",
    "lapn": "nnsslPlans_lapn",
    "sam": "nnsslPlans_sam",
    "mae": "nnsslPlans_alice_vit",
    "alice": "nnsslPlans_alice_vit",
    "simclr": RESENC,
    "unet_mae": RESENC,
    "volumefusion": RESENC,
}
_PATCHES = {
    "simclr": [64] * 3,
    "unet_mae": [160] * 3,
    "volumefusion": [160] * 3,
}  # of the recipe, which has 8 volumes a step
SPACING_OF_CT = (2.0, 1.0, 1.0)  # mm, where a preset takes it from the data
_UNET = "dynamic_network_architectures.architectures.unet."
_RESENC = {"n_stages": 6, "features_per_stage": [32, 64, 128, 256, 320, 320], "kernel_sizes": [[3, 3, 3]] * 6,
           "strides": [[1, 1, 1], *[[2, 2, 2]] * 5], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
           "n_conv_per_stage_decoder": [1] * 5}  # fmt: skip


@dataclass(frozen=True)
class Toy:
    """What makes a preset small: entries of its network's arguments, its patch and batch, the method's options."""

    network: dict[str, Any]
    patch: tuple[int, int, int]
    batch: int
    options: dict[str, Any]


_TOY_UNET = {"n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": [[3, 3, 3]] * 3,
             "strides": [[1, 1, 1], *[[2, 2, 2]] * 2], "n_blocks_per_stage": [1] * 3,
             "n_conv_per_stage_decoder": [1] * 2}  # fmt: skip
_TOKENS = {"token_width": 12, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
_TOY_VIT = {"image_size": [32, 48, 48], "feature_size": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4,
            "num_layers": 4}  # fmt: skip
_TOYS = {
    "vox2vec": Toy({"base_channels": 2}, (16, 32, 32), 2, {"voxels_per_pair": 64}),
    "voco": Toy({"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 4}, (32, 32, 64), 1, {
        "crops": 1, "grid": (1, 1, 2), "projection_dim": 16}),
    "pimpic": Toy({"base_channels": 4}, (32, 32, 32), 1, {"crops": 4, "projection_dim": 8}),
    "lapn": Toy({"channels": [4, 4, 8, 8, 8], "num_res_units": 1, "encoding_channels": 8}, (32, 32, 32), 2, {
        "points_per_pair": 64, "queue_size": 200}),
    "sam": Toy({"features_per_stage": [4, 8, 8, 16, 16]}, (16, 48, 48), 2, {
        "points_per_pair": 60, "embedding_dim": 8, "fine_queries": 12, "fine_ignore_mm": 4.0, "fine_ranked": 60,
        "fine_negatives": 20, "global_negatives": 10}),
    "mae": Toy(_TOY_VIT, (32, 48, 48), 2, _TOKENS),
    "alice": Toy(_TOY_VIT, (32, 48, 48), 2, {**_TOKENS, "head_dim": 8, "head_hidden": 16, "head_bottleneck": 6}),
    "simclr": Toy(_TOY_UNET, (16, 32, 32), 2, {"hidden_dim": 16, "projection_dim": 8}),
    "unet_mae": Toy(_TOY_UNET, (16, 32, 32), 2, {"mask_block": (8, 8, 8)}),
    "volumefusion": Toy(_TOY_UNET, (16, 32, 32), 2, {}),
}  # fmt: skip


class BenchmarkSetup(Setup):
    """A run whose U-Net of dynamic_network_architectures is built without nnU-Net, which only looks its class up."""

    def build_method(self) -> Method:
        """As `Setup.build_method`."""
        if not self.resolved["architecture"]["network_class_name"].startswith(_UNET):
            return super().build_method()
        method = get_method(self.method)
        backbone = UNetPyramid(_unet(self.resolved["architecture"]), method.levels)
        method.check(self.config, backbone)
        return method(backbone, self.config)


def plans_of(method: str, small: bool) -> dict[str, Any]:
    """The preset of a method, with a small network, patch and batch if `small`."""
    unet = PRESETS[method] == RESENC
    plans: dict[str, Any] = json.loads(presets()["nnsslPlans_sam" if unet else PRESETS[method]].read_text())
    configuration = plans["configurations"][CONFIGURATION]
    if unet:
        configuration.update(patch_size=_PATCHES[method], batch_size=8, spacing=[1.0, 1.0, 1.0])
        arguments = configuration["architecture"]["arch_kwargs"]
        del arguments["n_conv_per_stage"]
        arguments.update(_RESENC)
        configuration["architecture"]["network_class_name"] = f"{_UNET}ResidualEncoderUNet"
    if small:
        toy = _TOYS[method]
        configuration.update(patch_size=list(toy.patch), batch_size=toy.batch, spacing=None)
        configuration["architecture"]["arch_kwargs"].update(toy.network)
    return plans


def spacing_of(plans: dict[str, Any], small: bool) -> tuple[float, float, float] | None:
    """Spacing (z, y, x) in mm of the volumes; None for the phantoms' own."""
    z, y, x = plans["configurations"][CONFIGURATION]["spacing"] or SPACING_OF_CT
    return None if small else (float(z), float(y), float(x))


def config_of(method: str, plans: dict[str, Any], small: bool, **options: Any) -> MethodConfig:
    """Hyper-parameters of a method with the plans' batch and patch; `options` override them."""
    config = get_method(method).config_class(**{**(_TOYS[method].options if small else {}), **options})
    return resolve_sizes(config, resolve_configuration(plans, CONFIGURATION), 1)


def make_setup(
    method: str, config: MethodConfig, plans: dict[str, Any], volumes: VolumeFolder, cases: Sequence[str], folder: Path
) -> BenchmarkSetup:
    """A run over some cases of a folder, none held out."""
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    return BenchmarkSetup(method, config, plans, labels, {}, CONFIGURATION, "all", Cases.of([volumes], [cases]),
                          Cases.of([volumes], [[]]), folder,
                          resolved=resolve_configuration(plans, CONFIGURATION))  # fmt: skip


def smaller(config: MethodConfig) -> MethodConfig | None:
    """Half the batch; with one volume, half of its crops; None where there is nothing to halve."""
    if (config.batch_size or 1) > 1:
        return replace(config, batch_size=int(config.batch_size or 0) // 2)
    crops = int(getattr(config, "crops", 0))
    changes: dict[str, Any] = {"crops": crops // 2}
    return replace(config, **changes) if crops > 2 else None


def _unet(architecture: dict[str, Any]) -> nn.Module:
    name, arguments = architecture["network_class_name"], dict(architecture["arch_kwargs"])
    network_class: Any = pydoc.locate(name)
    if network_class is None:
        raise UserError("the preset's U-Net needs dynamic_network_architectures; type: pip install --no-deps "
                        "dynamic-network-architectures")  # fmt: skip
    for key in architecture["_kw_requires_import"]:
        arguments[key] = arguments[key] and pydoc.locate(arguments[key])
    network: nn.Module = network_class(input_channels=1, num_classes=2, deep_supervision=False, **arguments)
    return network.apply(network_class.initialize)

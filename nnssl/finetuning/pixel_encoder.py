"""Pixel encoders of finished pretrainings (LAPN, SAM), and the same networks from JSON, without the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nnssl.errors import UserError
from nnssl.finetuning.pretrained import load_whole
from nnssl.methods.options import from_plain
from nnssl.methods.pixel_method import PixelMethod
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import backbone_of, network_entries, resolve_configuration
from nnssl.networks.encodings import PixelEncoder, heads_from_description
from nnssl.pretraining.checkpoint import load_checkpoint

_PARTS = ("backbone.", "heads.")


@dataclass(frozen=True)
class PretrainedEncoder:
    """The pixel encoder of a pretraining, and what it was made with.

    Args:
        path: The checkpoint.
        method: Its name.
        plans, configuration, dataset_json: Of the pretraining.
        encoder: In evaluation mode, without gradients.
        architecture: JSON values from which `build_pixel_encoder` makes the same network.
        patch_size: (Z, Y, X) voxels of the crops that it learned from.
        orientation: The volumes' commonest one, such as LPS; None where it is unknown.
    """

    path: Path
    method: str
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    encoder: PixelEncoder
    architecture: dict[str, Any]
    patch_size: tuple[int, int, int]
    orientation: str | None


def read_pixel_encoder(path: Path) -> PretrainedEncoder:
    """Read the pixel encoder of a checkpoint of `nnssl_pretrain`.

    Raises:
        UserError: The file is no such checkpoint, its method encodes no pixels, or it does not fit its own plans.
    """
    content = load_checkpoint(path)
    method = get_method(content["method"])
    if not issubclass(method, PixelMethod):
        usable = " or ".join(name for name in method_names() if issubclass(get_method(name), PixelMethod))
        raise UserError(f"{path} was pretrained with {content['method']}, which does not encode single pixels; give a "
                        f"checkpoint of {usable}")  # fmt: skip
    resolved = resolve_configuration(content["plans"], content["configuration"])
    config = from_plain(method.config_class, content["config"])
    backbone = backbone_of(resolved, method.levels)
    encoder = PixelEncoder(backbone, method.encoding_heads(config, backbone))
    state = {name: tensor for name, tensor in content["method_state"].items() if name.startswith(_PARTS)}
    load_whole(encoder, state, path)
    architecture = {
        "network": network_entries(resolved),
        "levels": method.levels,
        "heads": {name: head.description() for name, head in encoder.named_heads().items()},
    }
    return PretrainedEncoder(path, content["method"], content["plans"], content["configuration"],
                             content["dataset_json"], encoder.freeze(), architecture,
                             cast(tuple[int, int, int], config.patch_size), content.get("orientation"))  # fmt: skip


def build_pixel_encoder(architecture: Mapping[str, Any], input_channels: int) -> PixelEncoder:
    """Build a pixel encoder with random weights.

    Args:
        architecture: From `PretrainedEncoder.architecture`; it may have gone through JSON.
        input_channels: Number of channels of the image.
    """
    resolved = {**architecture["network"], "normalization_schemes": [""] * input_channels}  # they only are counted
    backbone = backbone_of(resolved, architecture["levels"])
    return PixelEncoder(backbone, heads_from_description(backbone, architecture["heads"]))

"""A finished pretraining: its backbone or pixel encoder, read from a checkpoint and transferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from nnssl.checkpoints.files import FINAL, levels_of, load_checkpoint
from nnssl.checkpoints.loading import TransferReport, fill, first_of, fitting, load_whole
from nnssl.core.errors import UserError
from nnssl.methods.options import from_plain
from nnssl.methods.registry import IMPORTED, get_method, method_names
from nnssl.methods.shared.pixel_method import PixelMethod
from nnssl.networks.build import backbone_of, build_backbone, network_entries, resolve_configuration
from nnssl.networks.encodings import PixelEncoder, heads_from_description
from nnssl.networks.primus import Primus
from nnssl.networks.pyramid import FeaturePyramid, Stride
from nnssl.networks.vit import resized_positions

RANDOM = "random"  # in place of a checkpoint: the papers' baseline, a frozen random backbone
VARIABLE = "nnssl_checkpoint"
_BACKBONE = "backbone."


@dataclass(frozen=True)
class Pretrained:
    """The transferred part of a finished pretraining with its plans.

    Args:
        path: the checkpoint.
        method: its name.
        made_by: the same, but of imported weights the method that their authors made them with, where it is one of
            this package: trainers for that method take them.
        levels: of the network that the weights are for, see `nnssl.networks.build.build_backbone`.
        plans, configuration, dataset_json: of the pretraining.
        backbone: state of the `FeaturePyramid`.
        others: number of values by name of the rest, such as the pretraining's own heads.
        orientation: the volumes' commonest one, such as LPS; None where unknown.
        config: its hyper-parameters as JSON types, see `nnssl.methods.options.from_plain`.
    """

    path: Path
    method: str
    levels: Literal["encoder", "decoder"]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    backbone: dict[str, Tensor]
    others: dict[str, int]
    orientation: str | None
    config: dict[str, Any]
    made_by: str


def read_pretrained(path: Path, mapped: bool = False) -> Pretrained:
    """Read a checkpoint of `nnssl_pretrain`; `mapped` as of `load_checkpoint`.

    Raises:
        UserError: the file is not one.
    """
    return pretrained_of(load_checkpoint(path, mapped=mapped), path)


def pretrained_of(content: dict[str, Any], path: Path) -> Pretrained:
    """The transferred part of a checkpoint's content (`load_checkpoint`)."""
    state: dict[str, Tensor] = content["method_state"]
    return Pretrained(
        path,
        content["method"],
        levels_of(content),
        content["plans"],
        content["configuration"],
        content["dataset_json"],
        {name[len(_BACKBONE) :]: tensor for name, tensor in state.items() if name.startswith(_BACKBONE)},
        {name: tensor.numel() for name, tensor in state.items() if not name.startswith(_BACKBONE)},
        content.get("orientation"),
        content["config"],
        _made_by(content),
    )


def _made_by(content: dict[str, Any]) -> str:
    method = (content.get(IMPORTED) or {}).get("method")
    return str(method if method in method_names() else content["method"])


def finished_pretrainings(results: Path, method: str | None = None, dataset: str | None = None) -> list[Path]:
    """Checkpoints of the finished runs below nnUNet_results, sorted; of one method, or of one dataset by its name."""
    return sorted(results.glob(f"{escape(dataset) if dataset else 'Dataset*'}/nnssl_{method or '*'}__*/fold_*/{FINAL}"))


def name_of(path: Path | None, results: Path) -> str:
    """How plans name a checkpoint: relative to nnUNet_results if it is there, so that the folder can move."""
    if path is None:
        return RANDOM
    resolved = path.resolve()
    inside = resolved.is_relative_to(results.resolve())
    return (resolved.relative_to(results.resolve()) if inside else resolved).as_posix()


class PretrainedNetwork(Protocol):
    """A network with a pretrained part (`nnssl.finetuning.segmentation`)."""

    input_channels: int

    def pretrained_tensors(self) -> Mapping[str, Tensor]:
        """Its pretrained part by the names of the pretraining's backbone; every tensor once."""

    def own_tensors(self) -> Mapping[str, Tensor]:
        """Every tensor that its state dict holds and its logits depend on, once, by its name there."""

    def modules(self) -> Iterator[nn.Module]:
        """As of `nn.Module`."""


def load_pretrained(network: PretrainedNetwork, source: Pretrained, advice: str) -> TransferReport:
    """Give the network's pretrained part the pretrained values; the rest stays fresh.

    All tensors of that part must exist in their shapes, with two exceptions. In convolutions that read the image, the
    weights of one channel are shared evenly among several: equal channels give the same as the one. Learned position
    embeddings are interpolated from the pretraining's grid of tokens to the network's.

    Args:
        network: to load into.
        source: to load.
        advice: fix for differing architectures, as the end of a sentence.

    Raises:
        UserError: another architecture, with the first differing tensors and their shapes, or nothing to load.
    """
    wanted, given = network.pretrained_tensors(), source.backbone
    values, different = fitting(wanted, given, lambda name, found, own: _adapted(name, found, own, network, source))
    if different:
        named = first_of([f"{name}: {what}" for name, what in different.items()], "; ")
        raise UserError(f"{source.path} holds another network than these plans ({len(different)} of {len(wanted)} "
                        f"tensors differ: {named}); {advice}")  # fmt: skip
    loaded = {name: value.numel() for name, value in values.items() if value is given[name]}
    if not loaded:
        raise UserError(f"{source.path} holds nothing for these plans' network; {advice}")
    fill(wanted, values)
    used = {id(tensor) for tensor in wanted.values()}
    return TransferReport(
        loaded,
        {name: value.numel() for name, value in values.items() if name not in loaded},
        {name: tensor.numel() for name, tensor in network.own_tensors().items() if id(tensor) not in used},
        {name: tensor.numel() for name, tensor in _once(given).items() if name not in wanted} | source.others,
    )


def _adapted(name: str, found: Tensor, own: Tensor, network: PretrainedNetwork, source: Pretrained) -> Tensor | None:
    """A tensor in the shape that the network wants; None if that is impossible."""
    wanted = own.shape
    if _widens_input(found.shape, wanted, network.input_channels):
        return found.expand(*wanted) / network.input_channels
    grid = _position_grids(network.modules()).get(name)
    if grid is None or found.ndim != 3 or found.shape[2] != wanted[2]:
        return None
    with torch.device("meta"):  # for the grid only
        given = build_backbone(source.plans, source.configuration, source.levels).position_grids
    return resized_positions(found, given[name], grid) if name in given else None


def _position_grids(modules: Iterator[nn.Module]) -> dict[str, Stride]:
    """Grids of tokens of the pyramid with position embeddings, by the name of the embedding in the pyramid."""
    networks = (module for module in modules if isinstance(module, FeaturePyramid | Primus))
    return {name: grid for network in networks for name, grid in network.position_grids.items()}


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the further names of shared tensors (a checkpoint keeps them shared)."""
    first: dict[int, str] = {}
    return {n: t for n, t in state.items() if first.setdefault(t.data_ptr(), n) == n or not t.numel()}


def _widens_input(found: Sequence[int], wanted: Sequence[int], channels: int) -> bool:
    """Whether a convolution of one input channel could serve the network's several input channels."""
    same = len(found) == len(wanted) and [*found[:1], *found[2:]] == [*wanted[:1], *wanted[2:]]
    return len(found) == 5 and same and found[1] == 1 and wanted[1] == channels


_PARTS = ("backbone.", "heads.")


@dataclass(frozen=True)
class PretrainedEncoder:
    """The pixel encoder of a pretraining with its plans.

    Args:
        path: the checkpoint.
        method: its name.
        plans, configuration, dataset_json: of the pretraining.
        encoder: in evaluation mode, without gradients.
        architecture: JSON values from which `build_pixel_encoder` makes the same network.
        patch_size: (Z, Y, X) voxels of the crops that it learned from.
        orientation: the volumes' commonest one, such as LPS; None where unknown.
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
        UserError: the file is no such checkpoint; or as `pixel_encoder_of`.
    """
    return pixel_encoder_of(load_checkpoint(path), path)


def pixel_encoder_of(content: dict[str, Any], path: Path) -> PretrainedEncoder:
    """The pixel encoder in a checkpoint's content (`load_checkpoint`).

    Raises:
        UserError: its method encodes no pixels, or it does not fit its own plans.
    """
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
        architecture: from `PretrainedEncoder.architecture`, also after a way through JSON.
        input_channels: number of channels of the image.
    """
    resolved = {**architecture["network"], "normalization_schemes": [""] * input_channels}  # only their number counts
    backbone = backbone_of(resolved, architecture["levels"])
    return PixelEncoder(backbone, heads_from_description(backbone, architecture["heads"]))

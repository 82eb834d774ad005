"""MONAI's SwinUNETR as VoCo, SwinUNETR SSL and others publish it: trained on (x, y, z) with MONAI before 1.5.

The transformer keeps its order of axes (`axes` of `nnssl.networks.swin.SwinPyramid`), because its windows and patch
mergings cannot be transposed; the kernels of the convolution blocks are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from nnssl.checkpoints.imported import Weights
from nnssl.core.errors import UserError
from nnssl.interchange.family import CONFIGURATION, Family, Imported, Window, dataset_json_of, plans_of
from nnssl.interchange.names import below, left_of, numbered
from nnssl.interchange.opening import Opened
from nnssl.interchange.transposing import transposed_kernels
from nnssl.networks.pyramid import Levels

_SIGN = "patch_embed.proj.weight"
_TRANSFORMERS = ("swinViT.", "swin_vit.", "encoder.")  # its names inside the whole network
_ENCODER = ("encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10.")
_DECODER = ("decoder1.", "decoder2.", "decoder3.", "decoder4.", "decoder5.")
_NESTED = re.compile(r"^(layers[1-4]\.0)\.0\.")  # as the 50,000 volumes' file names the stages
_PATCH = (96, 96, 96)
_REASONS = {
    "teacher": "of the teacher", "student.": "a projection head", "mask_token": "of masking alone",
    "out.": "a segmentation or reconstruction head", "head": "a head of the pretext task",
}  # fmt: skip
TANG = "Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022"
_DAE = (
    "Valanarasu et al., Disruptive Autoencoders: Leveraging Low-level Features for 3D Medical Image Pre-training, 2023"
)
_VOCO = "Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors, 2024 (VoCo, CVPR 2024)"


class Swin(NamedTuple):
    """A SwinUNETR among the tensors of a file."""

    transformer: dict[str, Tensor]  # by MONAI's names in `swinViT`
    blocks: dict[str, Tensor]  # its convolution blocks by MONAI's names
    left: dict[str, str]  # the file's other tensors, with the reason

    @property
    def is_v2(self) -> bool:
        """Whether its stages begin with residual convolutions (He et al. 2023)."""
        return any(name.startswith("layers1c.") for name in self.transformer)


def swin_of(tensors: Mapping[str, Tensor]) -> Swin | None:
    """The SwinUNETR in a file; None where there is none."""
    found = below(tensors, _SIGN)
    if found is None or not any(name.startswith("layers4.0.") for name in found.inside):
        return None
    own = next((name for name in _TRANSFORMERS if found.prefix.endswith(name)), "")
    root = found.prefix[: len(found.prefix) - len(own)]
    transformer, blocks, taken = {}, {}, set()
    for name, tensor in tensors.items():
        inner = name[len(found.prefix) :] if name.startswith(found.prefix) else ""
        outer = name[len(root) :] if name.startswith(root) else ""
        if outer.startswith((*_ENCODER, *_DECODER)):
            blocks[outer] = tensor
        elif inner.startswith(("patch_embed.", "layers")):
            transformer[_monai_name(inner)] = tensor
        else:
            continue
        taken.add(name)
    rest = [name for name in tensors if name not in taken]
    return Swin(transformer, blocks, left_of(rest, _REASONS, "no part of a SwinUNETR"))


def _monai_name(name: str) -> str:
    name = _NESTED.sub(r"\1.", name)
    return name.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")


def read_swin(
    swin: Swin,
    plans_name: str,
    spacing: tuple[float, float, float],
    window: Window,
    made_by: str | None = None,
    **about: Any,
) -> Imported:
    """Weights of our network from those of a file.

    The levels are the decoder's where the file holds the whole of it. Convolution blocks that the file does not hold
    keep random initial values.

    Args:
        swin: from `swin_of`.
        plans_name: of the plans.
        spacing: mm (z, y, x).
        window: of the intensities.
        made_by: of `Weights`.
        about: title, licence, citation and url of `Imported`.
    """
    state = {f"swinViT.{name}": tensor for name, tensor in swin.transformer.items()} | transposed_kernels(swin.blocks)
    held = {name.partition(".")[0] + "." for name in swin.blocks}
    levels: Levels = "decoder" if held >= {*_ENCODER, *_DECODER} else "encoder"
    needed = _ENCODER if levels == "encoder" else (*_ENCODER, *_DECODER)
    size, channels = swin.transformer[_SIGN].shape[:2]
    tables = [swin.transformer[f"layers{n}.0.blocks.0.attn.relative_position_bias_table"] for n in range(1, 5)]
    kwargs: dict[str, Any] = {
        "feature_size": size,
        "depths": [numbered(swin.transformer, f"layers{n}.0.blocks.") for n in range(1, 5)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (round(len(tables[0]) ** (1 / 3)) + 1) // 2,
        "use_checkpoint": True,
        "use_v2": swin.is_v2,
        "axes": "xyz",
        "merging": "six_cells",
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    }
    architecture = {"network_class_name": "nnssl.networks.swin.SwinUNETR", "arch_kwargs": kwargs}
    plans = plans_of(plans_name, architecture, spacing, _PATCH, window, channels)
    fresh = tuple(part for part in needed if part not in held)
    weights = Weights(plans, CONFIGURATION, levels, state, dataset_json_of(*["CT"] * channels), "RAS", fresh, made_by)
    return Imported(weights, axes="xyz", left=swin.left, **about)


def _is_voco(opened: Opened) -> bool:
    swin = swin_of(opened.tensors)
    return swin is not None and swin.is_v2


def _read_voco(opened: Opened) -> Imported:
    swin = swin_of(opened.tensors)
    assert swin is not None
    return read_swin(
        swin, "nnsslPlans_voco", (1.5, 1.5, 1.5), Window(-175.0, 250.0), made_by="voco",
        title=f"VoCo, SwinUNETR v2 with feature size {len(swin.transformer[_SIGN])}",
        licence="Apache-2.0", citation=_VOCO, url="https://huggingface.co/Luffy503/VoCo",
    )  # fmt: skip


def _is_v1(opened: Opened) -> bool:
    return swin_of(opened.tensors) is not None


def _read_ssl(opened: Opened) -> Imported:
    swin = swin_of(opened.tensors)
    assert swin is not None
    names = " ".join(opened.tensors)
    if "mask_token" in names:
        return read_swin(
            swin, "nnsslPlans_swinunetr_50k", (2.0, 2.0, 2.0), Window(-1000.0, 1000.0),
            title="SwinUNETR, disruptive autoencoders on 50,000 CT and MR volumes",
            licence="Apache-2.0", citation=_DAE, url="https://github.com/Project-MONAI/research-contributions",
        )  # fmt: skip
    if ".mlp.fc1." in names:
        return read_swin(
            swin, "nnsslPlans_swinunetr_ssl", (2.0, 1.5, 1.5), Window(-1000.0, 1000.0),
            title="SwinUNETR, self-supervised on 5,050 CT volumes",
            licence="Apache-2.0", citation=TANG, url="https://github.com/Project-MONAI/research-contributions",
        )  # fmt: skip
    raise UserError(f"{opened.path} is a SwinUNETR, and its names do not tell which one, so that its spacing and "
                    f"intensities are unknown; give a file of VoCo, SwinUNETR SSL or SuPreM as its authors publish "
                    f"it")  # fmt: skip


FAMILIES = (
    Family("voco", "VoCo, VoComni: SwinUNETR v2 of any feature size (CT, 1.5 mm)", "Apache-2.0", _is_voco, _read_voco),
    Family(
        "swinunetr_ssl",
        "SwinUNETR SSL: of 5,050 CT volumes (1.5 x 1.5 x 2 mm), and of 50,000 CT and MR volumes (2 mm)",
        "Apache-2.0",
        _is_v1,
        _read_ssl,
    ),
)

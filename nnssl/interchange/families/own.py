"""Runs of this package: a final checkpoint, or what `nnssl_export` made of one. Plans, window and licence are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnssl.checkpoints.exported import ADAPTATION_PLAN, CONFIG, NETWORK
from nnssl.checkpoints.files import FINAL, FORMAT, NNUNET_WEIGHTS, check_entries, levels_of
from nnssl.checkpoints.imported import Weights
from nnssl.checkpoints.origin import origin_of
from nnssl.core.errors import UserError
from nnssl.interchange.family import Family, Imported
from nnssl.interchange.opening import Opened
from nnssl.methods.registry import IMPORTED, get_method

_BACKBONE = "backbone."
_METADATA = "__metadata__"  # of safetensors: further names of tensors that are there once


def _recognises(opened: Opened) -> bool:
    return _entries(opened) is not None or _is_stock_copy(opened)


def _entries(opened: Opened) -> Mapping[str, Any] | None:
    """Entries of a run's checkpoint but its tensors."""
    if opened.container == "method_state":
        return opened.rest
    places = (opened.rest.get("init_args") if ADAPTATION_PLAN in opened.rest else None,
              _mapping(opened.beside.get(CONFIG)).get("run") if not opened.container else None)  # fmt: skip
    return next((place for place in places if isinstance(place, Mapping) and "method" in place), None)


def _is_stock_copy(opened: Opened) -> bool:
    return opened.container == "network_weights" and dict(opened.rest) == {"format": FORMAT}


def _read(opened: Opened) -> Imported:
    entries = _entries(opened)
    if entries is None:
        raise UserError(f"{opened.path} is a {NNUNET_WEIGHTS} of nnssl, made for nnUNetv2_train -pretrained_weights, "
                        f"without its plans; give the {FINAL} of the run")  # fmt: skip
    tensors = dict(opened.tensors)
    if opened.container == "network_weights":
        tensors = {f"{NETWORK}{name}": tensor for name, tensor in tensors.items()}
    tensors |= {
        alias: tensors[name] for alias, name in _mapping(opened.beside.get(_METADATA)).items() if name in tensors
    }
    content = check_entries({**entries, "method_state": tensors}, opened.path)
    origin, method = origin_of(content) or {}, content["method"]
    named = {name.removeprefix(_BACKBONE): tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)}
    heads = (name for name in tensors if not name.startswith(_BACKBONE))
    weights = Weights(content["plans"], content["configuration"], levels_of(content), named, content["dataset_json"],
                      content.get("orientation"))  # fmt: skip
    title = f"nnssl_pretrain -m {method}" if method != IMPORTED else "another program"
    return Imported(
        weights,
        title=origin.get("title", title) if method == IMPORTED else title,
        licence=origin.get("licence"),
        citation="; ".join(text for text in (get_method(method).paper, origin.get("citation")) if text),
        url=origin.get("url", ""),
        left=dict.fromkeys(heads, "a head of the pretraining"),
        derived=bool(origin.get("derived")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


FAMILY = Family(
    "nnssl", f"runs of nnssl_pretrain ({FINAL}) and what nnssl_export makes of them", "its own", _recognises, _read
)  # fmt: skip

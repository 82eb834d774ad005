"""Starting a run from another run's weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.data.guard import Images, warn_of_images
from nnssl.errors import UserError
from nnssl.methods.base import Method
from nnssl.pretraining.checkpoint import load_checkpoint
from nnssl.pretraining.setup import Setup

log = logging.getLogger("nnssl")


def load_weights(method: Method, path: Path) -> None:
    """Start from another run's weights: the backbone must fit entirely, the rest only where it does.

    Raises:
        UserError: a tensor of the backbone is missing or has another shape; the first ones are named.
    """
    own, fitting = method.state_dict(), _fitting(method, load_checkpoint(path), path)
    method.load_state_dict(fitting, strict=False)
    fresh = [k for k in own if k not in fitting]
    log.info(f"{path}: {len(fitting)} of {len(own)} tensors loaded, {len(fresh)} fresh"
             + (f" ({_first(fresh)})" if fresh else ""))  # fmt: skip


def check_weights(method: Method, setup: Setup, allow: bool) -> None:
    """Make sure that a run can start from the weights that its request names.

    Args:
        method: of the run; it may be without memory.
        setup: of the run, with `pretrained`.
        allow: whether the weights may be of another modality.

    Raises:
        UserError: as of `load_weights`; or they are of another modality (`nnssl.data.guard`).
    """
    assert setup.pretrained is not None
    content = load_checkpoint(setup.pretrained)
    _fitting(method, content, setup.pretrained)
    given = Images.of_pretraining(
        content["plans"], content["configuration"], content["dataset_json"], content.get("orientation")
    )
    own = Images.of_pretraining(setup.plans, setup.configuration, setup.dataset_json, None)
    name = setup.train.folders[0].name
    oriented = {f"most volumes of {name}": setup.orientation}
    warn_of_images(given, replace(own, name=name, orientations=oriented), allow)


def _fitting(method: Method, content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint that the method has a place for; raises as `load_weights` does."""
    state: dict[str, Tensor] = content["method_state"]
    own = method.state_dict()
    wrong = [
        f"{k} {tuple(state[k].shape) if k in state else 'missing'} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k.startswith("backbone.") and (k not in state or state[k].shape != v.shape)
    ]
    if wrong:
        raise UserError(f"{path} holds another network than these plans: {_first(wrong)}; give a checkpoint of the "
                        f"same architecture, or the plans that it was made with (-p)")  # fmt: skip
    return {
        k: v
        for k, v in state.items()
        if k in own and own[k].shape == v.shape and not k.startswith(type(method).of_the_run)
    }


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

"""Starting a run from another run's weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from nnssl.errors import UserError
from nnssl.methods.base import Method
from nnssl.pretraining.checkpoint import load_checkpoint

log = logging.getLogger("nnssl")


def load_weights(method: Method, path: Path) -> None:
    """Start from another run's weights: the backbone must fit entirely, the rest only where it does.

    Raises:
        UserError: a tensor of the backbone is missing or has another shape; the first ones are named.
    """
    own, fitting = method.state_dict(), fitting_weights(method, path)
    method.load_state_dict(fitting, strict=False)
    fresh = [k for k in own if k not in fitting]
    log.info(f"{path}: {len(fitting)} of {len(own)} tensors loaded, {len(fresh)} fresh"
             + (f" ({_first(fresh)})" if fresh else ""))  # fmt: skip


def fitting_weights(method: Method, path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint that the method has a place for; raises as `load_weights` does."""
    state: dict[str, Tensor] = load_checkpoint(path)["method_state"]
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

"""Starting a run from another run's weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.loading import first_of, fitting
from nnssl.core.errors import UserError
from nnssl.data.guard import Images, warn_of_images
from nnssl.methods.base import Method
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
             + (f" ({first_of(fresh)})" if fresh else ""))  # fmt: skip


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
    values, different = fitting(method.state_dict(), content["method_state"])
    wrong = [f"{name}: {what}" for name, what in different.items() if name.startswith("backbone.")]
    if wrong:
        raise UserError(f"{path} holds another network than these plans ({first_of(wrong, '; ')}); give a checkpoint "
                        f"of the same architecture, or the plans that it was made with (-p)")  # fmt: skip
    return {name: value for name, value in values.items() if not name.startswith(type(method).of_the_run)}

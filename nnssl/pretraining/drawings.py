"""What a run draws of its batches: `views.png` at its first step, `reconstruction.png` where it saves.

A run does without a picture that the disk does not take; it ends where its weights or its figures cannot be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnssl.core.system import dispensable
from nnssl.methods.base import Batch, Method, Panel
from nnssl.pretraining.pictures import draw_panels
from nnssl.pretraining.setup import Setup


def draw_views(setup: Setup, method: Method, views: Batch, cases: Sequence[str]) -> None:
    """Draw an augmented batch of the cases."""
    panels = type(method).panels({k: v.cpu() for k, v in views.items()}, setup.config)
    _draw(setup, panels, "views", "views of the first step", cases)


@torch.no_grad()
def draw_reconstruction(setup: Setup, method: Method, views: Batch, cases: Sequence[str], epoch: int) -> None:
    """Draw what the network makes of an augmented batch after an epoch, if the method shows it; mode as it was."""
    training = method.training
    method.eval()
    panels = method.reconstruction(views)
    method.train(training)
    if panels:
        _draw(setup, panels, "reconstruction", f"after epoch {epoch}", cases)


def _draw(setup: Setup, panels: list[list[Panel]], name: str, heading: str, cases: Sequence[str]) -> None:
    named = "\n".join(dict.fromkeys(cases[: len(panels)]))
    with dispensable(f"{name}.png"):
        draw_panels(panels, setup.folder / f"{name}.png", f"{setup.method}: {heading}\n{named}")

"""What a step needs of a card's memory, and which options would make it fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from nnssl.core.distributed import world_size
from nnssl.core.errors import UserError
from nnssl.core.pretended_backward import TorchTooOld
from nnssl.methods.base import Method, MethodConfig
from nnssl.pretraining.rehearsal import rehearse
from nnssl.pretraining.setup import Setup

log = logging.getLogger("nnssl")

_ROOM = 0.9  # of a card for tensors; CUDA, the workspaces of convolutions and gaps between tensors take the rest
_MOST_PARTS = 16
_HALVINGS = 3
_SMALLER = ("crops", "batch_size", "patch_size")


def peak_gib(setup: Setup, method: Method | None = None) -> float:
    """Most GiB that the tensors of a training step take on each card, without cuDNN's workspace.

    Args:
        setup: of the run.
        method: of the run, on any device; None: it is built.

    Raises:
        UserError: the options and the network do not fit together.
        TorchTooOld: this release of torch cannot rehearse a step.
    """
    method = method or setup.build_method()  # which checks the whole step; what follows is one process' share of it
    share = replace(setup.config, batch_size=setup.config.volumes // world_size())
    return rehearse(replace(setup, config=share), method).peak_gib


def announce_memory(setup: Setup, method: Method) -> None:
    """Print what a step will need of the card that this process uses, and what is free on it."""
    try:
        needed = peak_gib(setup, method)
    except TorchTooOld as reason:
        log.info(str(reason))
        return
    except Exception as error:  # an operation that the rehearsal does not know must not stop a run
        log.warning(f"the memory of a step could not be estimated ({type(error).__name__}: {error})")
        return
    free = (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30
    log.info(f"A step needs about {needed:.1f} GiB on the card, {free:.1f} are free")


def card_gib() -> float | None:
    """Memory of the card that this process uses; None without one."""
    return torch.cuda.mem_get_info()[1] / 2**30 if torch.cuda.is_available() else None


def what_would_fit(setup: Setup) -> str:
    """A sentence for a step that did not fit: options of this method with values that do by the estimate."""
    try:
        return _estimated(setup)
    except Exception as error:  # as above
        log.debug("the memory of a step could not be estimated", exc_info=error)
    smaller = [f"{name}=..." for name in _SMALLER if getattr(setup.config, name, None) is not None]
    return (f"the card's memory does not suffice for a step; continue with --c {setup.flag} "
            f"checkpoint_activations=true or accumulate=..., or start anew with --overwrite {setup.flag} "
            f"{' or '.join(smaller)}")  # fmt: skip


def _estimated(setup: Setup) -> str:
    needed = peak_gib(setup)
    card = card_gib() or needed
    room = _ROOM * card
    kept = _first_of_each(setup, [{"checkpoint_activations": True}, *_parts(), *_both()], room)
    anew = [found for name in _SMALLER
            for found in _first_of_each(setup, _smaller(setup.config, name), room)[:1]]  # fmt: skip
    fixes = [f"continue with --c {setup.flag} {' or '.join(kept)}"] if kept else []
    fixes += [f"start anew with --overwrite {setup.flag} {' or '.join(anew)}"] if anew else []
    advice = ", or ".join(fixes) or "use a card with more memory, or a smaller network"
    return f"the card's {card:.1f} GiB do not suffice for a step, which needs about {needed:.1f}; {advice}"


def _parts() -> list[dict[str, Any]]:
    return [{"accumulate": 2**n} for n in range(1, _MOST_PARTS.bit_length())]


def _both() -> list[dict[str, Any]]:
    return [{"checkpoint_activations": True, **parts} for parts in _parts()]


def _smaller(config: MethodConfig, name: str) -> Iterator[dict[str, Any]]:
    """Smaller values of an option, largest first; none where the method lacks it."""
    value = getattr(config, name, None) if name in config.__dataclass_fields__ else None
    for _ in range(_HALVINGS):
        if isinstance(value, tuple):
            side = max(value)
            value = tuple(n // 2 if n == side else n for n in value)
        elif isinstance(value, int):
            value = value // 2
        else:
            return
        yield {name: value}


def _first_of_each(setup: Setup, changes: Any, room: float) -> list[str]:
    """Of the changes of the same options the first that fits, with what it needs."""
    found: dict[tuple[str, ...], str] = {}
    for change in changes:
        if tuple(change) in found or all(getattr(setup.config, k) == v for k, v in change.items()):
            continue
        if (needed := _needed(setup, change)) is not None and needed < room:
            found[tuple(change)] = f"{_typed(change)} (about {needed:.1f})"
    return list(found.values())


def _needed(setup: Setup, change: dict[str, Any]) -> float | None:
    """GiB with other options; None where they do not go with the method, the network or the processes."""
    try:
        config = replace(setup.config, **change)
        return None if config.volumes % world_size() else peak_gib(replace(setup, config=config))
    except UserError:
        return None


def _typed(change: dict[str, Any]) -> str:
    return " ".join(f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else str(value).lower()}"
                    for name, value in change.items())  # fmt: skip

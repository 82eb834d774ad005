"""Checkpoints of nnU-Net's trainers, opened so that nothing in them can run code.

nnU-Net opens them with `weights_only=False`, since they also hold numbers of numpy (of the log, mostly). PyTorch's
restricted unpickler reads those too if it is told to.
"""

from __future__ import annotations

import argparse
import codecs
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.found_by_nnunet import Kind, why_not_found

_RESAMPLING = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
_KINDS: dict[str, Kind] = {
    "image_reader_writer": "reader",
    "label_manager": "label manager",
    "preprocessor_name": "preprocessor",
    "normalization_schemes": "normalisation",
    **dict.fromkeys(_RESAMPLING, "resampling function"),
}


def refuse_untrusted_names(
    plans: Mapping[str, Any], configuration: Mapping[str, Any] | None = None, source: object = None
) -> None:
    """Make sure that the names in plans lead nnU-Net to classes and functions of the right kind.

    Args:
        plans: their names that all configurations share are checked: reader and label manager.
        configuration: one of theirs, with what it inherits, whose names are checked too. Missing names are not refused.
        source: file that the plans come from, for the message.

    Raises:
        UserError: a name leads to nothing, or to something of another kind.
    """
    resolved = configuration or {}
    named = [(key, plans[key]) for key in ("image_reader_writer", "label_manager") if key in plans]
    named += [(key, resolved[key]) for key in ("preprocessor_name", *_RESAMPLING) if key in resolved]
    named += [("normalization_schemes", scheme) for scheme in resolved.get("normalization_schemes") or ()]
    for key, name in named:
        if reason := why_not_found(name, _KINDS[key]) if isinstance(name, str) else "is no text":
            where = f"the plans in {source}" if source else "the plans"
            raise UserError(f"{where} name {name!r} as {key}, which {reason}; mend it, or plan the dataset again")


_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # PyTorch's


def read_nnunet_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint of nnU-Net on the CPU.

    Raises:
        UserError: the file is damaged, or holds more than tensors, plain types and numbers of numpy.
    """
    import torch

    try:
        with only_plain_types(path):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged files raise errors of all types
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {_short(error)}); copy it again, or train "
                        f"again") from error  # fmt: skip
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of nnU-Net; name a checkpoint_*.pth that nnUNetv2_train wrote")
    return content


@contextmanager
def only_plain_types(path: str | Path, fix: str = "take another file, or train again") -> Iterator[None]:
    """Let `torch.load`, nnU-Net's own calls included, open nothing but tensors, plain types and numbers of numpy.

    Args:
        path: of the checkpoint that is opened meanwhile, for the message.
        fix: what to do where it is refused, as the end of a sentence.

    Raises:
        UserError: it holds anything else.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    replaced = _allow_instead(_NUMBERS)
    os.environ[_FORCE] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = error.__context__ or error  # PyTorch writes a page of advice around it
        named = re.search(r"GLOBAL (\S+)", str(reason))
        held = f"it names {named[1]}" if named else _short(reason)
        raise UserError(f"{path} is not opened, as that could run code: {held}, and weights need nothing but tensors, "
                        f"numbers and text; {fix}") from error  # fmt: skip
    finally:
        _allow_instead(replaced)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _NumberType:
    """Stands in for `numpy.dtype`, whose own `__setstate__` trusts the file."""

    def __init__(self, code: str, *_flags: bool) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it holds numpy's type {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> Any:
    """Stands in for `numpy.core.multiarray.scalar`."""
    return np.frombuffer(content, kind.dtype, 1)[0]


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function under the name that files use; PyTorch 2.4 offers no other way."""

    def stand_in(*arguments: Any) -> Any:
        return function(*arguments)

    stand_in.__module__, _, stand_in.__qualname__ = name.rpartition(".")
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


def _allow_instead(added: list[Any]) -> list[Any]:
    """Let PyTorch's restricted unpickler take these for the names of `_NUMBERS`; returns what it took before."""
    from torch import serialization

    allowed = serialization.get_safe_globals()
    replaced = [entry for entry in allowed if _full_name(entry) in _NAMES]
    serialization.clear_safe_globals()
    serialization.add_safe_globals([*(entry for entry in allowed if entry not in replaced), *added])
    return replaced


def _full_name(allowed: Any) -> str:
    return str(allowed[1]) if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


_NumberType.__module__, _NumberType.__name__, _NumberType.__qualname__ = "numpy", "dtype", "dtype"
_NUMBERS: list[Any] = [
    codecs.encode,  # for their bytes; PyTorch 2.4 and 2.5 do not allow it by themselves
    _NumberType,
    _named(_number, "numpy.core.multiarray.scalar"),  # numpy 1
    _named(_number, "numpy._core.multiarray.scalar"),  # numpy 2
    argparse.Namespace,  # of the options that many training scripts keep beside the weights; it only holds values
]
_NAMES = {_full_name(stand_in) for stand_in in _NUMBERS}

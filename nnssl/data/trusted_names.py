"""What plans may name of nnU-Net's own code: its readers, preprocessors, normalisations and resampling functions.

nnU-Net looks such a name up among everything that a folder of its modules holds, what they import included, and calls
it with arguments from the plans.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from nnssl.data.quiet import quietly
from nnssl.errors import UserError

_RESAMPLING = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")


def refuse_untrusted_names(
    plans: Mapping[str, Any], configuration: Mapping[str, Any] | None = None, source: object = None
) -> None:
    """Make sure that nnU-Net finds what it should find under the names in plans.

    Args:
        plans: The names that all configurations share are looked at: reader and label manager.
        configuration: One of them, with what it inherits; its names are looked at too. Names that are missing are not
            this function's business.
        source: File that the plans come from, for the message.

    Raises:
        UserError: A name leads to nothing, or to what is not of its kind.
    """
    for key, name in _named(plans, configuration or {}):
        if reason := _reason(key, name):
            where = f"the plans in {source}" if source else "the plans"
            raise UserError(f"{where} name {name!r} as {key}, which {reason}; mend it, or plan the dataset again")


def _named(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("image_reader_writer", "label_manager"):
        if key in plans:
            yield key, plans[key]
    for key in ("preprocessor_name", *_RESAMPLING):
        if key in configuration:
            yield key, configuration[key]
    for scheme in configuration.get("normalization_schemes") or ():
        yield "normalization_schemes", scheme


def _reason(key: str, name: Any) -> str | None:
    """Why nnU-Net must not use a name; None where it may."""
    if not isinstance(name, str):
        return "is no text"
    with quietly():
        return _reason_of_function(name) if key in _RESAMPLING else _reason_of_class(key, name)


@cache
def _reason_of_class(key: str, name: str) -> str | None:
    folder, base = _kind(key)
    found = _look_up(folder, name)
    if isinstance(found, type) and issubclass(found, base):
        return None
    return f"is no {base.__name__} in nnunetv2.{folder}"


@cache
def _reason_of_function(name: str) -> str | None:
    from nnunetv2.preprocessing.resampling import utils  # which looks up such functions, and imports modules for it

    room = utils.__name__.rpartition(".")[0]
    found = _look_up("preprocessing.resampling", name)
    home = found.__module__ if inspect.isfunction(found) else ""
    if home.startswith(f"{room}.") and home != utils.__name__:
        return None
    return f"is no function for resampling in {room}"


def _kind(key: str) -> tuple[str, type]:
    """Where nnU-Net looks for a class, and what all of its kind are derived from."""
    if key == "image_reader_writer":
        from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

        return "imageio", BaseReaderWriter
    if key == "label_manager":
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        return "utilities.label_handling", LabelManager
    if key == "preprocessor_name":
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

        return "preprocessing", DefaultPreprocessor
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

    return "preprocessing.normalization", ImageNormalization


def _look_up(folder: str, name: str) -> Any:
    """What nnU-Net finds; None for nothing."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    path = os.path.join(nnunetv2.__path__[0], *folder.split("."))
    return recursive_find_python_class(path, name, f"nnunetv2.{folder}")

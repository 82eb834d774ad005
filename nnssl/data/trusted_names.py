"""What plans may name of nnU-Net's own code: its readers, preprocessors, normalisations and resampling functions.

nnU-Net looks such a name up among everything that a folder of its modules holds, what they import included, and calls
it with arguments from the plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nnssl.core.found_by_nnunet import Kind, why_not_found
from nnssl.errors import UserError

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
    return why_not_found(name, _KINDS[key]) if isinstance(name, str) else "is no text"

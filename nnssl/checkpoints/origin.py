"""Where weights come from in the end: whose licence and citation they carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORIGIN = "origin"  # entry of a checkpoint
_IMPORTED = "imported"  # entry of one that nnssl_import wrote
_KEPT = ("title", "licence", "citation", "url", "derived")


def origin_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Licence and citation of weights of somebody else that a checkpoint holds or derives from.

    Args:
        content: of a checkpoint.

    Returns:
        title, licence, citation and url, as far as they are known, and `derived` where training changed the weights;
        None for weights that began at random.
    """
    if ORIGIN in content:
        return dict(content[ORIGIN])
    if _IMPORTED in content:
        return {key: content[_IMPORTED][key] for key in _KEPT if content[_IMPORTED].get(key)}
    return None


def derived(origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a training from such weights keeps in its checkpoints; nothing for weights that began at random."""
    return {} if origin is None else {ORIGIN: {**origin, "derived": True}}

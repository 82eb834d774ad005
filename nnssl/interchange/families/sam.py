"""SAM's and UAE's published weights: their 3D ResNet-18 with FPN is none of our networks, which is said clearly."""

from __future__ import annotations

from nnssl.core.errors import UserError
from nnssl.interchange.family import Family, Imported, without_prefixes
from nnssl.interchange.opening import Opened

_PARTS = ("backbone.", "neck.", "read_out_head.")


def _recognises(opened: Opened) -> bool:
    names = without_prefixes(opened.tensors, "module.")
    return all(any(name.startswith(part) for name in names) for part in _PARTS)


def _read(opened: Opened) -> Imported:
    raise UserError(f"{opened.path} holds SAM's 3D ResNet-18 with FPN, which is no network of this package; pretrain "
                    f"one with nnssl_pretrain -m sam -p nnsslPlans_sam")  # fmt: skip


FAMILY = Family("sam", "SAM, UAE: recognised, and refused: there is no such network here", "MIT", _recognises, _read)

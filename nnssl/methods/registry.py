"""Every method of the package, by the name that `-m` takes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nnssl.core.errors import UserError

if TYPE_CHECKING:  # a method imports torch, and `--help` only needs the names
    from nnssl.methods.base import Method

_METHODS = {
    "vox2vec": "nnssl.methods.vox2vec.method:Vox2vec",
    "voco": "nnssl.methods.voco.method:VoCo",
    "pimpic": "nnssl.methods.pimpic.method:Pimpic",
    "lapn": "nnssl.methods.lapn.method:Lapn",
    "sam": "nnssl.methods.sam.method:Sam",
    "mae": "nnssl.methods.mae.method:MaskedAutoencoder",
    "alice": "nnssl.methods.alice.method:Alice",
    "simclr": "nnssl.methods.simclr.method:Simclr",
    "unet_mae": "nnssl.methods.unet_mae.method:UnetMae",
    "volumefusion": "nnssl.methods.volumefusion.method:VolumeFusion",
}
IMPORTED = "imported"  # of checkpoints whose weights come from elsewhere; `-m` of nnssl_pretrain does not take it


def method_names() -> list[str]:
    """The names that `-m` takes."""
    return list(_METHODS)


def get_method(name: str) -> type[Method]:
    """Class of a method, or of what stands in its place; UserError that lists the methods where there is none."""
    where = "nnssl.methods.imported:Imported" if name == IMPORTED else _METHODS.get(name)
    if where is None:
        raise UserError(f"there is no method {name!r}; choose one of: {', '.join(_METHODS)}")
    module, class_name = where.split(":")
    method: type[Method] = getattr(import_module(module), class_name)
    return method

"""Every family of public weights that can be read, in the order in which a file is compared with them."""

from __future__ import annotations

from nnssl.core.errors import UserError
from nnssl.interchange.families import ct_fm, exchange, nnunet_model, own, sam, stunet, suprem, swinunetr, vox2vec
from nnssl.interchange.family import Family
from nnssl.interchange.opening import Opened

FAMILIES: tuple[Family, ...] = (
    own.FAMILY,  # before those of networks, whose files it would be taken for
    exchange.FAMILY,
    stunet.FAMILY,  # before nnU-Net's: its trainers replace the network of their plans
    nnunet_model.FAMILY,
    vox2vec.FAMILY,
    suprem.FAMILY,
    *swinunetr.FAMILIES,
    ct_fm.FAMILY,
    sam.FAMILY,  # refuses
)

_SHOWN = 8  # names of tensors that a message lists


def family_of(opened: Opened) -> Family:
    """The family of a file.

    Raises:
        UserError: none; the message describes the file and lists what can be read.
    """
    for family in FAMILIES:
        if family.recognises(opened):
            return family
    listed = "".join(f"\n  {family.about}" for family in FAMILIES)
    raise UserError(f"{opened.path} is of no known family; it holds {described(opened)}; what can be read:{listed}")


def described(opened: Opened) -> str:
    """Entries beside the tensors, the number of tensors, and the first ones with their shapes."""
    named = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(opened.tensors.items())[:_SHOWN])
    more = ", ..." if len(opened.tensors) > _SHOWN else ""
    under = f" under {opened.container}" if opened.container else ""
    beside = f", beside {', '.join(map(str, list(opened.rest)[:_SHOWN]))}" if opened.rest else ""
    return f"{len(opened.tensors)} tensors{under} ({named}{more}){beside}"

"""Which classes the architecture of plans may name.

Plans come from other people's checkpoints, model folders and ONNX files, and nnU-Net calls whatever they name:
`nonlin: "os.system"` runs a command. This module looks every name up first, imports nothing but trusted modules, and
judges the object it finds. A check of the prefix would not suffice, because attribute look-up can leave a package, as
in `torch.nn.modules.module.os.system`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nnssl.core.errors import UserError

VARIABLE = "nnssl_trusted_modules"  # modules of the user's own classes: a,b
_FOLDERS = "nnUNet_extTrainer"  # folders with the user's own trainers and other classes
_OPERATIONS = ("torch.nn",)
_NETWORKS = (*_OPERATIONS, "nnssl", "dynamic_network_architectures", "monai.networks")
_NETWORK_PARTS = ("block",)  # arguments other than operations: a residual U-Net's kind of block
_OLD_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")  # of plans without `architecture`, as nnU-Net reads them


def trusted_network(resolved: Mapping[str, Any], source: object = None) -> dict[str, Any]:
    """Look up and judge every class that the network of a configuration is built from.

    The network must be an `nn.Module` class of torch.nn, this package, dynamic_network_architectures or MONAI; its
    operations, normalisations and non-linearities classes of torch.nn. Classes in the user's own trainer folders
    (`nnUNet_extTrainer`) and in the modules that `nnssl_trusted_modules` lists pass too. None stays None.

    Args:
        resolved: Configuration of plans with what it inherits, also of older nnU-Net versions.
        source: File that the plans come from, for the message.

    Returns:
        A copy with the full name of each class, so that nnU-Net has nothing to search.

    Raises:
        UserError: A name leads to anything else or to nothing, or the architecture does not have nnU-Net's form.
    """
    plans = f"the plans in {source}" if source else "the plans"
    copy = deepcopy(dict(resolved))
    if "architecture" not in copy:
        _check_old(copy, plans)
        return copy
    architecture = copy["architecture"]
    kwargs, imported = _parts(architecture, plans)
    architecture["network_class_name"] = _class_name(
        architecture["network_class_name"], "network_class_name", _NETWORKS, plans
    )
    for key in imported:
        if key not in kwargs:
            raise UserError(f"{plans} list {key} in _kw_requires_import, which is no key of their arch_kwargs; add it "
                            f"there, or take it from the list")  # fmt: skip
        if kwargs[key] is not None:
            kwargs[key] = _class_name(kwargs[key], key, _NETWORKS if key in _NETWORK_PARTS else _OPERATIONS, plans)
    return copy


def _check_old(configuration: Mapping[str, Any], plans: str) -> None:
    name = configuration.get("UNet_class_name")
    if name not in _OLD_NETWORKS:
        raise UserError(f"{plans} have no architecture, and {name!r} as UNet_class_name is none that nnU-Net knows "
                        f"({', '.join(_OLD_NETWORKS)}); plan the dataset again")  # fmt: skip


def _parts(architecture: Any, plans: str) -> tuple[dict[str, Any], list[str]]:
    """arch_kwargs, and the keys of those that name classes."""
    if not isinstance(architecture, dict) or not isinstance(architecture.get("network_class_name"), str):
        raise UserError(f"{plans} have an architecture without the text network_class_name; plan the dataset again")
    kwargs, imported = architecture.get("arch_kwargs"), architecture.get("_kw_requires_import")
    if imported is None and architecture["network_class_name"].startswith("nnssl."):
        imported = []  # this package's networks need none
    if not isinstance(kwargs, dict):
        raise UserError(f"{plans} have an architecture without arch_kwargs, an object of the network's arguments; plan "
                        f"the dataset again")  # fmt: skip
    if not isinstance(imported, list | tuple) or not all(isinstance(key, str) for key in imported):
        raise UserError(f"{plans} have an architecture without _kw_requires_import, a list of the arch_kwargs that "
                        f"name classes; plan the dataset again")  # fmt: skip
    return kwargs, list(imported)


def _class_name(name: Any, key: str, homes: Sequence[str], plans: str) -> str:
    """Full name of the trusted class that a name leads to; UserError where it leads to anything else."""
    trusted = (*homes, *_users_modules())
    try:
        found: Any = _locate(name, trusted) if isinstance(name, str) else None
        if found is None and key == "network_class_name" and _may_have_moved(name, trusted):
            found = _moved_network(name)
    except Exception as error:  # importing a module can raise anything, for example where MONAI is not installed
        raise UserError(f"{plans} name {name} as {key}, which cannot be imported here ({type(error).__name__}: "
                        f"{error}); install it, or mend it") from error  # fmt: skip
    if not _is_trusted_class(found, trusted):
        said = "" if found is None else f" (it is {_described(found)})"
        raise UserError(f"{plans} name {name!r} as {key}, which is no nn.Module class of {' or '.join(homes)}{said}, "
                        f"and plans may call nothing else; if it is a class of your own, type: export "
                        f"{VARIABLE}={_module_to_trust(found, str(name), homes)}")  # fmt: skip
    full = f"{found.__module__}.{found.__qualname__}"
    return full if _locate(full, trusted) is found else str(name)


def _locate(name: str, homes: Sequence[str]) -> Any:
    """Look up as `pydoc.locate` (nnU-Net's look-up) does, but import and enter nothing outside of the homes.

    Returns:
        The object; None if there is none, or none in a home.
    """
    parts = name.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        return None
    home = next((h for h in homes if name.startswith(f"{h}.")), None)
    if home is not None:
        return _look_up(parts[home.count(".") + 1 :], home)
    if len(parts) > 1 and _is_in_trainer_folder(parts[0]):
        with _trainer_folders_on_path():
            found = _look_up(parts[1:], parts[0])
        if _comes_from_trainer_folder(parts[0]):  # and not from an installed module of that name
            return found
    return None


def _look_up(parts: list[str], home: str) -> Any:
    """Follow the parts through modules below a home, then through attributes."""
    path, found = home, import_module(home)
    while parts and hasattr(found, "__path__") and find_spec(f"{path}.{parts[0]}") is not None:
        path = f"{path}.{parts[0]}"
        found, parts = import_module(path), parts[1:]
    return _attribute(found, parts, home)


def _attribute(found: Any, parts: list[str], home: str) -> Any:
    """Follow attributes of modules and classes; stop at any other object, or at a module outside of the home."""
    for part in parts:
        if isinstance(found, ModuleType) and not _is_below(found.__name__, [home]):
            return found
        if not isinstance(found, ModuleType | type):
            return found
        found = getattr(found, part, None)
    return found


def _may_have_moved(name: Any, homes: Sequence[str]) -> bool:
    """Whether nnU-Net's second look-up may search a network's class by its last name.

    It may for names without a package, and of a trusted package that no longer has them. For others it would guess.
    """
    return isinstance(name, str) and ("." not in name or _is_below(name, homes))


def _moved_network(name: str) -> Any:
    """Search a network as `get_network_from_plans` does after its first look-up fails."""
    import dynamic_network_architectures as room
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(room.__path__[0], "architectures")
    return recursive_find_python_class(folder, name.split(".")[-1], f"{room.__name__}.architectures")


def _is_trusted_class(found: Any, homes: Sequence[str]) -> bool:
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return False
    return _is_below(found.__module__, homes) or _comes_from_trainer_folder(found.__module__)


def _is_below(module: str, homes: Sequence[str]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def _module_to_trust(found: Any, name: str, homes: Sequence[str]) -> str:
    """The module that the user would have to trust; a placeholder for Python's own modules and trusted ones."""
    module = found.__module__ if isinstance(found, type) else name.rpartition(".")[0]
    root = module.partition(".")[0]
    known = root in sys.stdlib_module_names or _is_below(module, homes)
    return module if root.isidentifier() and not known else "ITS_MODULE"


def _described(found: Any) -> str:
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    if isinstance(found, type):
        return f"the class {found.__qualname__} of {found.__module__}"
    return f"a {type(found).__name__}"


def _users_modules() -> tuple[str, ...]:
    return tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def _trainer_folders() -> list[str]:
    folders = os.environ.get(_FOLDERS, "").split(os.pathsep)
    return [os.path.realpath(folder) for folder in folders if folder.strip()]


def _is_in_trainer_folder(module: str) -> bool:
    spec = PathFinder.find_spec(module, _trainer_folders())
    return spec is not None and spec.origin is not None


def _comes_from_trainer_folder(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and any(Path(os.path.realpath(file)).is_relative_to(f) for f in _trainer_folders())


@contextmanager
def _trainer_folders_on_path() -> Iterator[None]:
    """Add the folders for a while, as nnU-Net does while it looks for a trainer."""
    added = [folder for folder in _trainer_folders() if folder not in sys.path]
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = [folder for folder in sys.path if folder not in added]

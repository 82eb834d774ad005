"""`-o key=value`: hyper-parameters from the command line, typed by the method's dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Container, Iterable
from typing import Any, TypeVar

from nnssl.core.errors import UserError
from nnssl.core.names import nearest, shown
from nnssl.methods.base import FORMERLY_FIXED, MethodConfig

MEMORY_OPTIONS = ("checkpoint_activations", "accumulate")  # change gradients by rounding only: --c may change them
_LARGEST = 2.0**63

Config = TypeVar("Config", bound=MethodConfig)


def override(config: Config, options: Iterable[str], flag: str = "-o") -> Config:
    """Copy of `config` with `key=value` strings applied.

    Values are read as the field's type: numbers, `true`/`false`, `none`, one of the listed words, or comma-separated
    numbers for tuples. Messages name the `flag`.

    Raises:
        UserError: for an unknown key (one that is alike is named, else all), a value of another type, or a missing `=`.
    """
    hints = typing.get_type_hints(type(config))
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise UserError(f"{flag} takes key=value, not {shown(option)}")
        if key not in hints:
            if (meant := nearest(key, hints)) is not None:
                raise UserError(f"there is no option {shown(key)}; did you mean {meant}? ({flag} help=1 lists all)")
            shared, own = _listed(config)
            raise UserError(f"there is no option {shown(key)}; every method has {shared}, and this one also {own}")
        if key in values:
            raise UserError(f"{flag} has {key} twice; remove one")
        try:
            values[key] = _parse(text, hints[key])
        except OverflowError:
            raise UserError(f"{flag} {key} must be finite and below 2^63, not {shown(text)}") from None
        except ValueError:
            raise UserError(f"{flag} {key} takes {describe_type(hints[key])}, not {shown(text)}") from None
    return dataclasses.replace(config, **values)


def to_plain(config: MethodConfig) -> dict[str, Any]:
    """The hyper-parameters as JSON types (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def from_plain(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Inverse of `to_plain`. What an older version did not store has the value that it used.

    Raises:
        UserError: for keys that the class no longer has, and values of the wrong type.
    """
    fields = dataclasses.fields(config_class)
    unknown = sorted(set(values) - {f.name for f in fields})
    if unknown:
        raise UserError(f"the stored options {', '.join(unknown)} do not exist in this version; install the version "
                        f"that config.json names, or start a new run with --overwrite")  # fmt: skip
    former = {f.name: f.metadata[FORMERLY_FIXED] for f in fields if FORMERLY_FIXED in f.metadata}
    typed: dict[str, Any] = former | {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints = typing.get_type_hints(config_class)
    if wrong := [
        f"{k} ({describe_type(hints[k])}, not {shown(v)})" for k, v in typed.items() if not _fits(v, hints[k])
    ]:
        raise UserError(f"the stored options {', '.join(wrong)} are damaged; restore the checkpoint, or start a new "
                        f"run with --overwrite")  # fmt: skip
    return config_class(**typed)


def new_options(config: MethodConfig, stored: Container[str]) -> list[str]:
    """`name=value` of the options that a stored config lacks, without those that were constants of its version."""
    options = (f for f in dataclasses.fields(config) if f.name not in stored and FORMERLY_FIXED not in f.metadata)
    return [_typed(config, f.name) for f in options]


def describe_type(hint: Any) -> str:
    """Describe a type for messages and help."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) for a in arguments)
    if origin is tuple:
        return f"{len(arguments)} comma-separated {describe_type(arguments[0])}s"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(hint, str(hint))


def _parse(text: str, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _parse(text, next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        if text in arguments:
            return text
        raise ValueError(text)
    if origin is tuple:
        parts = text.strip("()[]").split(",")
        if len(parts) != len(arguments):
            raise ValueError(text)
        return tuple(_parse(part.strip(), a) for part, a in zip(parts, arguments, strict=True))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = hint(text)
    if not _fits(value, hint):
        raise OverflowError(text)
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a field's type; numbers must be finite and below 2^63."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        same = isinstance(value, tuple) and len(value) == len(arguments)
        return same and all(_fits(v, a) for v, a in zip(value, arguments, strict=True))
    if hint in (int, float):
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and -_LARGEST < value < _LARGEST
    return isinstance(value, hint)


def _listed(config: MethodConfig) -> tuple[str, str]:
    """All options with their values, as `-o` takes them: those of every method, and the method's own."""
    shared = [f.name for f in dataclasses.fields(MethodConfig)]
    own = [f.name for f in dataclasses.fields(config) if f.name not in shared]
    one, two = (" ".join(_typed(config, name) for name in names) for names in (shared, own))
    return one, two


def _typed(config: MethodConfig, name: str) -> str:
    value = getattr(config, name)
    return f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else str(value).lower()}"

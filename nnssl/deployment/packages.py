"""The packages of the extra `onnx`, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnssl.errors import UserError

_INSTALL = "pip install onnx onnxscript onnxruntime psutil"


def need(name: str) -> Any:
    """Return the module of that name, one of the extra `onnx`.

    Raises:
        UserError: it cannot be imported; the message has the line to type.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"this command needs {name}, which cannot be imported ({error}); type: {_INSTALL}") from error

"""ONNX Runtime sessions of the files that `nnssl_export_onnx` writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.files import checked
from nnssl.core.own_files import OnnxFile
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.networks.build import any_configuration

log = logging.getLogger("nnssl")

_INSTALL = "pip install onnx onnxscript onnxruntime psutil"


def need(name: str) -> Any:
    """Import a module of the extra `onnx`.

    Raises:
        UserError: it cannot be imported; the message has the line to type.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"this command needs {name}, which cannot be imported ({error}); type: {_INSTALL}") from error


FORMAT = 1
_PREFIX = "nnssl."


@dataclass(frozen=True)
class Description:
    """A trained model without its network. Every value is of a JSON type.

    Args:
        plans: the model folder's plans.json.
        dataset_json: the model folder's dataset.json.
        configuration: such as "3d_fullres".
        fold: number, or "all".
        trainer_name: name of the trainer's class.
        mirroring_axes: spatial axes along which prediction mirrors, as the training allows it; None for no mirroring.
        nnssl_version: version that wrote this.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    trainer_name: str
    mirroring_axes: list[int] | None
    nnssl_version: str

    def to_metadata(self) -> dict[str, str]:
        """One entry a field, as JSON, for the metadata of an ONNX file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_PREFIX + name: json.dumps(value) for name, value in {"format": FORMAT, **values}.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: object) -> Description:
        """The description in the metadata of `file`.

        Raises:
            UserError: the metadata hold none, or one in another version of the format.
        """
        made_by = "give a file that nnssl_export_onnx of this version wrote"
        found = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
        if not found:
            raise UserError(f"{file} does not say which plans its network belongs to; {made_by}")
        try:
            values = {name: json.loads(value) for name, value in found.items()}
            if values.pop("format", None) != FORMAT:
                raise ValueError("another format")
        except (ValueError, RecursionError) as error:
            raise UserError(f"the description in {file} cannot be read; {made_by}") from error
        checked(values, OnnxFile, file, made_by)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


_MOST_THREADS = 1024
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class OnnxModel:
    """An opened file.

    Args:
        session: ONNX Runtime's.
        description: from the file's metadata.
    """

    session: Any
    description: Description


def open_model(file: Path, device: str = "cpu", threads: int = 0) -> OnnxModel:
    """Open an ONNX file of ours.

    Args:
        file: from `nnssl_export_onnx`.
        device: "cpu" or "cuda", which chooses the execution provider.
        threads: of the session; 0 is one a core.

    Raises:
        UserError: the file is missing, damaged or not ours, its plans name code that nnU-Net must not call, or ONNX
            Runtime cannot use the device.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; nnssl_export_onnx makes one from a model folder")
    try:
        session = make_session(str(file), device, threads)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common type; all of them mean: not a usable file
        raise UserError(f"{file} cannot be read as an ONNX file, make it again with nnssl_export_onnx "
                        f"({' '.join(str(error).split())[:300]})") from error  # fmt: skip
    description = Description.from_metadata(session.get_modelmeta().custom_metadata_map, file)
    resolved = any_configuration(description.plans, description.configuration)
    refuse_untrusted_names(description.plans, resolved, file)
    return OnnxModel(session, description)


def make_session(model: str | bytes, device: str = "cpu", threads: int = 0) -> Any:
    """An `onnxruntime.InferenceSession` of a file or of its content; arguments as in `open_model`.

    Raises:
        UserError: ONNX Runtime is not installed, or cannot use the device.
    """
    if not 0 <= threads <= _MOST_THREADS:
        raise UserError(f"-threads takes a number from 0 (one a core) to {_MOST_THREADS}, not {threads}")
    onnxruntime = need("onnxruntime")
    onnxruntime.disable_telemetry_events()  # nothing about a hospital's use may be collected
    if device not in _PROVIDERS:
        raise UserError(f"there is no device {device!r}; use -device cuda or -device cpu")
    provider = _PROVIDERS[device]
    refused = (f"ONNX Runtime {onnxruntime.__version__} cannot use a CUDA card here; give -device cpu, or type: "
               f"pip install onnxruntime-gpu")  # fmt: skip
    if provider not in onnxruntime.get_available_providers():
        raise UserError(refused)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if provider not in session.get_providers():  # if a CUDA library is missing it only warns
        raise UserError(refused)
    return session


def usual_session_device() -> str:
    """The device of a session without -device: cuda where PyTorch and ONNX Runtime can use a card, else cpu."""
    device = resolve_device(None)
    if device == "cuda" and _PROVIDERS["cuda"] not in need("onnxruntime").get_available_providers():
        log.warning("this ONNX Runtime knows no CUDA, so the CPU is used; -device cpu says so without this line, and "
                    "pip install onnxruntime-gpu makes it use the card")  # fmt: skip
        return "cpu"
    return device


def run(session: Any, image: np.ndarray) -> np.ndarray:
    """Logits (B, num_classes, *patch) of patches (B, C, *patch), both float32."""
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
    return logits  # type: ignore[no-any-return]

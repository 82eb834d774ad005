"""ONNX Runtime sessions of the files that `nnssl_export_onnx` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.deployment.description import Description
from nnssl.deployment.packages import need
from nnssl.errors import UserError
from nnssl.networks.build import any_configuration

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
        UserError: the file is missing, damaged or not ours, its plans name what nnU-Net must not call, or ONNX Runtime
            cannot use the device.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; nnssl_export_onnx makes one from a model folder")
    try:
        session = make_session(str(file), device, threads)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no type in common; all of them mean: not a usable file
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
    onnxruntime.disable_telemetry_events()  # nothing about a hospital's use is to be collected
    provider = _PROVIDERS[device]
    refused = (f"ONNX Runtime {onnxruntime.__version__} cannot use a CUDA card here; give -device cpu, or type: "
               f"pip install onnxruntime-gpu")  # fmt: skip
    if provider not in onnxruntime.get_available_providers():
        raise UserError(refused)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if provider not in session.get_providers():  # where a library of CUDA is missing it only warns
        raise UserError(refused)
    return session


def usable_device() -> str:
    """ "cuda" where ONNX Runtime was built for it and torch sees a card; else "cpu"."""
    import torch

    built = _PROVIDERS["cuda"] in need("onnxruntime").get_available_providers()
    return "cuda" if built and torch.cuda.is_available() else "cpu"


def run(session: Any, image: np.ndarray) -> np.ndarray:
    """Logits (B, num_classes, *patch) of patches (B, C, *patch), both float32."""
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
    return logits  # type: ignore[no-any-return]

"""ONNX files of trained networks, checked against PyTorch before they are written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.data.pool import quietly
from nnssl.deployment.model_folder import TrainedModel, read_model
from nnssl.deployment.session import make_session, need, run

logger = logging.getLogger("nnssl")

OPSET = 18  # that torch's exporter is written in; a later one would only need a later runtime
MAX_DIFFERENCE = 1e-3  # of logits
_BATCH_SIZES = (1, 2, 3)  # of the random inputs that are compared


def export_onnx(
    model_folder: str | Path,
    output_file: str | Path,
    fold: int | str = 0,
    checkpoint: str = "checkpoint_final.pth",
) -> float:
    """Write the network of a model folder as an ONNX file that holds all that prediction needs.

    Opset 18; input "image" (B, C, *patch) with any B and the patch of the plans, output "logits" (B, num_classes,
    *patch), both float32. The sliding window is not part of it. Takes whatever `nnUNetv2_predict` can use: stock
    trainers and ours, 3D and 2D configurations, the second stage of a cascade, regions, an ignore label.

    Args:
        model_folder: of a training, TRAINER__PLANS__CONFIGURATION.
        output_file: replaced in one piece, after the check.
        fold: a number, or "all"; an ensemble is one file per fold.
        checkpoint: file name of the checkpoint.

    Returns:
        The largest absolute difference of the logits to PyTorch's, over random patches in batches of 1, 2 and 3, with
        ONNX Runtime on the CPU.

    Raises:
        UserError: something is missing or cannot be exported, or the difference is above 1e-3; nothing is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    output = Path(output_file)
    if output.is_dir():
        raise UserError(f"{output} is a folder; give -o a file, such as {output / 'student.onnx'}")
    model = read_model(Path(model_folder), str(fold), checkpoint)
    content = to_onnx(model)
    difference = largest_difference(model, content)
    if not difference <= MAX_DIFFERENCE:  # also if it is NaN
        raise UserError(f"the largest difference of ONNX Runtime's logits to PyTorch's is {difference:.2e}, more than "
                        f"{MAX_DIFFERENCE:g}; {output} was not written; another version of torch or onnxruntime may "
                        f"export this network correctly")  # fmt: skip
    replace_file(output, content)
    logger.info("%s: %.1f MB, opset %d, patch %s, largest difference of the logits to PyTorch %.2e",
                output, len(content) / 1e6, OPSET, "x".join(map(str, model.input_shape[1:])), difference)  # fmt: skip
    return difference


def to_onnx(model: TrainedModel) -> bytes:
    """Content of an ONNX file with the network and, in its metadata, the description.

    Raises:
        UserError: torch cannot export the network.
    """
    import torch

    example = torch.randn(2, *model.input_shape)  # the exporter would take a batch of 1 for a constant
    with quietly():
        try:
            program: Any = torch.onnx.export(
                model.network, (example,), dynamo=True, opset_version=OPSET, input_names=["image"],
                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
                verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"torch {torch.__version__} cannot export this network "
                            f"({' '.join(str(error).split())[:300]})") from error  # fmt: skip
    proto = program.model_proto
    need("onnx").helper.set_model_props(proto, model.description.to_metadata())
    content: bytes = proto.SerializeToString()
    return content


def largest_difference(model: TrainedModel, content: bytes) -> float:
    """Largest absolute difference between ONNX Runtime's logits and PyTorch's, on random patches."""
    import numpy as np
    import torch

    session = make_session(content)
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch_size in _BATCH_SIZES:
        image = torch.randn(batch_size, *model.input_shape, generator=generator)
        with torch.inference_mode():
            expected = model.network(image).numpy()
        differences.append(np.abs(run(session, image.numpy()) - expected).max())
    return float(np.max(differences))  # NaN if one is

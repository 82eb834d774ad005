"""A classifier as an ONNX file: one window and its body mask in, probabilities or a number out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnssl.classification.method import body_mean
from nnssl.classification.model import MODEL, Classifier, load_classifier
from nnssl.core import VERSION
from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.data.pool import quietly
from nnssl.deployment.export import MAX_DIFFERENCE, OPSET
from nnssl.deployment.session import make_session, need

_BATCH_SIZES = (1, 2, 3)  # of the random windows that are compared

log = logging.getLogger("nnssl")


class WindowScores(nn.Module):
    """What a classifier says of windows.

    Args:
        classifier: whose backbone and head it takes.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.backbone, self.level = classifier.model.backbone, classifier.level
        self.is_classes = bool(classifier.classes)
        self.head = nn.Linear(*classifier.head.weights.T.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(classifier.head.weights))
            self.head.bias.copy_(torch.from_numpy(classifier.head.bias))
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, body: Tensor) -> Tensor:
        """Map windows (B, C, Z, Y, X) and masks (B, 1, Z, Y, X), 0 or 1, to probabilities (B, K) or numbers (B, 1)."""
        levels = self.backbone(image)[self.backbone.finest :]
        chosen = levels if self.level is None else [levels[self.level]]
        scores = self.head(torch.cat([body_mean(level, body[:, 0]) for level in chosen], dim=1))
        return scores.softmax(1) if self.is_classes else scores


def is_classifier(model: str | Path) -> bool:
    """Whether a path is a folder or a file of `nnssl_classify`."""
    path = Path(model)
    return path.name == MODEL or any((path / name).is_file() for name in (MODEL, "classification.json"))


def export_classifier(model: str | Path, output_file: str | Path, fold: int | str = 0) -> float:
    """Write a classifier of `nnssl_classify` as an ONNX file, checked against PyTorch.

    Inputs "image" (B, C, *patch), the plans' normalised values, and "body" (B, 1, *patch), 0 or 1, both float32;
    output "probabilities" (B, K), or "value" (B, 1). Images that are larger than the patch are cut into windows, whose
    outputs are averaged; `nnssl_classify_predict` averages their features by their body voxels instead.

    Args:
        model: folder of `nnssl_classify`, of one of its folds, or a `model.pth`.
        output_file: replaced in one piece, after the check.
        fold: of a fine-tuned model.

    Returns:
        The largest absolute difference of the outputs to PyTorch's, on random windows in batches of 1, 2 and 3; of
        numbers, relative to the largest.

    Raises:
        UserError: something is missing or cannot be exported, or the difference is above 1e-3; nothing is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    path, output = Path(model), Path(output_file)
    if output.is_dir():
        raise UserError(f"{output} is a folder; give -o a file, such as {output / 'classifier.onnx'}")
    files = [path, path / MODEL, path / f"fold_{fold}" / MODEL]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{path} holds no {MODEL} of fold {fold}; train that fold, or choose another with -f")
    classifier = load_classifier(file)
    scores = WindowScores(classifier)
    content = _to_onnx(classifier, scores)
    difference = _largest_difference(classifier, scores, content)
    if not difference <= MAX_DIFFERENCE:  # also if it is NaN
        raise UserError(f"the largest difference of ONNX Runtime's outputs to PyTorch's is {difference:.2e}, more than "
                        f"{MAX_DIFFERENCE:g}; {output} was not written; another version of torch or onnxruntime may "
                        f"export this network correctly")  # fmt: skip
    replace_file(output, content)
    log.info(f"{output}: {len(content) / 1e6:.1f} MB, opset {OPSET}, {classifier.target}, largest difference of the "
             f"outputs to PyTorch {difference:.2e}")  # fmt: skip
    return difference


def _windows(classifier: Classifier, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    size = classifier.model.patch_size
    image = torch.randn(count, classifier.model.input_channels, *size, generator=generator)
    return image, (torch.rand(count, 1, *size, generator=generator) < 0.5).float()


def _to_onnx(classifier: Classifier, scores: WindowScores) -> bytes:
    # the exporter would take a batch of 1 for a constant
    example = _windows(classifier, 2, torch.Generator().manual_seed(0))
    output = "probabilities" if classifier.classes else "value"
    batch = {0: torch.export.Dim("batch")}
    with quietly():
        try:
            program: Any = torch.onnx.export(
                scores, example, dynamo=True, opset_version=OPSET, input_names=["image", "body"],
                output_names=[output], dynamic_shapes=(batch, batch), external_data=False, verbose=False,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            raise UserError(f"torch {torch.__version__} cannot export this network "
                            f"({' '.join(str(error).split())[:300]})") from error  # fmt: skip
    model = classifier.model
    about = {"target": classifier.target, "classes": list(classifier.classes), "plans": model.plans,
             "configuration": model.configuration, "dataset_json": model.dataset_json,
             "nnssl_version": VERSION}  # fmt: skip
    proto = program.model_proto
    need("onnx").helper.set_model_props(proto, {f"nnssl.{key}": json.dumps(value) for key, value in about.items()})
    content: bytes = proto.SerializeToString()
    return content


def _largest_difference(classifier: Classifier, scores: WindowScores, content: bytes) -> float:
    session, generator = make_session(content), torch.Generator().manual_seed(1)
    differences = []
    for count in _BATCH_SIZES:
        image, body = _windows(classifier, count, generator)
        with torch.inference_mode():
            expected = scores(image, body).numpy()
        (found,) = session.run(None, {"image": image.numpy(), "body": body.numpy()})
        scale = 1.0 if classifier.classes else max(1.0, float(np.abs(expected).max()))
        differences.append(np.abs(found - expected).max() / scale)
    return float(np.max(differences))  # NaN if one is

"""nnssl: self-supervised pretraining on nnU-Net folders, used by nnU-Net's own training and prediction commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnssl.data.label_maps import check_annotated_labels, propose_annotated_labels
    from nnssl.data.plan_and_preprocess import plan_and_preprocess
    from nnssl.deployment.efficiency import measure_efficiency
    from nnssl.deployment.export import export_onnx
    from nnssl.deployment.predict import predict_onnx
    from nnssl.finetuning.transfer_plans import transfer
    from nnssl.installation import check_installation
    from nnssl.matching.run import match
    from nnssl.pretraining.pretrain import pretrain

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "check_annotated_labels",
    "check_installation",
    "export_onnx",
    "match",
    "measure_efficiency",
    "plan_and_preprocess",
    "predict_onnx",
    "pretrain",
    "propose_annotated_labels",
    "transfer",
]

_WHERE = {
    "check_annotated_labels": "nnssl.data.label_maps",
    "check_installation": "nnssl.installation",
    "export_onnx": "nnssl.deployment.export",
    "match": "nnssl.matching.run",
    "measure_efficiency": "nnssl.deployment.efficiency",
    "plan_and_preprocess": "nnssl.data.plan_and_preprocess",
    "predict_onnx": "nnssl.deployment.predict",
    "pretrain": "nnssl.pretraining.pretrain",
    "propose_annotated_labels": "nnssl.data.label_maps",
    "transfer": "nnssl.finetuning.transfer_plans",
}


def __getattr__(name: str) -> Any:
    # torch and nnU-Net take seconds to import: `--help` must not wait for them
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute {name!r}")

"""nnssl: self-supervised pretraining on nnU-Net folders, used by nnU-Net's own training and prediction commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnssl.core import VERSION
from nnssl.core.errors import UserError, speak_in_nnunet_commands

if TYPE_CHECKING:
    from nnssl.analysis.embed import embed
    from nnssl.analysis.match import match
    from nnssl.analysis.matches import visualize_matches
    from nnssl.analysis.pca import visualize_pca
    from nnssl.analysis.similarity import visualize_similarity
    from nnssl.analysis.tsne import visualize_tsne
    from nnssl.analysis.views import visualize_reconstruction, visualize_views
    from nnssl.benchmarking.benchmark import benchmark
    from nnssl.benchmarking.evaluate import evaluate
    from nnssl.benchmarking.scan_labels import benchmark_scan_labels
    from nnssl.classification.classify import classify
    from nnssl.classification.predict import classify_predict
    from nnssl.data.label_maps import check_annotated_labels, propose_annotated_labels
    from nnssl.data.plan_and_preprocess import plan_and_preprocess
    from nnssl.deployment.efficiency import measure_efficiency
    from nnssl.deployment.export import export_onnx
    from nnssl.deployment.predict import predict_onnx
    from nnssl.features.model import load_pretrained
    from nnssl.finetuning.transfer_plans import transfer
    from nnssl.installation import check_installation
    from nnssl.interchange.exporting import export
    from nnssl.interchange.writing import import_weights
    from nnssl.pretraining.pretrain import pretrain

__version__ = VERSION
__all__ = [
    "UserError",
    "__version__",
    "benchmark",
    "benchmark_scan_labels",
    "check_annotated_labels",
    "check_installation",
    "classify",
    "classify_predict",
    "embed",
    "evaluate",
    "export",
    "export_onnx",
    "import_weights",
    "load_pretrained",
    "match",
    "measure_efficiency",
    "plan_and_preprocess",
    "predict_onnx",
    "pretrain",
    "propose_annotated_labels",
    "transfer",
    "visualize_matches",
    "visualize_pca",
    "visualize_reconstruction",
    "visualize_similarity",
    "visualize_tsne",
    "visualize_views",
]

_WHERE = {
    "benchmark": "nnssl.benchmarking.benchmark",
    "benchmark_scan_labels": "nnssl.benchmarking.scan_labels",
    "check_annotated_labels": "nnssl.data.label_maps",
    "check_installation": "nnssl.installation",
    "classify": "nnssl.classification.classify",
    "classify_predict": "nnssl.classification.predict",
    "embed": "nnssl.analysis.embed",
    "evaluate": "nnssl.benchmarking.evaluate",
    "export": "nnssl.interchange.exporting",
    "export_onnx": "nnssl.deployment.export",
    "import_weights": "nnssl.interchange.writing",
    "load_pretrained": "nnssl.features.model",
    "match": "nnssl.analysis.match",
    "measure_efficiency": "nnssl.deployment.efficiency",
    "plan_and_preprocess": "nnssl.data.plan_and_preprocess",
    "predict_onnx": "nnssl.deployment.predict",
    "pretrain": "nnssl.pretraining.pretrain",
    "propose_annotated_labels": "nnssl.data.label_maps",
    "transfer": "nnssl.finetuning.transfer_plans",
    "visualize_matches": "nnssl.analysis.matches",
    "visualize_pca": "nnssl.analysis.pca",
    "visualize_reconstruction": "nnssl.analysis.views",
    "visualize_similarity": "nnssl.analysis.similarity",
    "visualize_tsne": "nnssl.analysis.tsne",
    "visualize_views": "nnssl.analysis.views",
}


speak_in_nnunet_commands()


def __getattr__(name: str) -> Any:
    # torch and nnU-Net take seconds to import: `--help` must not wait for them
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute {name!r}")

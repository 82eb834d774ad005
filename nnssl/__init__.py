"""nnssl: self-supervised pretraining on nnU-Net folders, used by nnU-Net's own training and prediction commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnssl.core.nnunet_commands import speak_in_nnunet_commands

if TYPE_CHECKING:
    from nnssl.data.label_maps import check_annotated_labels, propose_annotated_labels
    from nnssl.data.plan_and_preprocess import plan_and_preprocess
    from nnssl.deployment.efficiency import measure_efficiency
    from nnssl.deployment.export import export_onnx
    from nnssl.deployment.predict import predict_onnx
    from nnssl.embedding.embed import embed
    from nnssl.embedding.model import load_pretrained
    from nnssl.evaluation.evaluate import evaluate
    from nnssl.figures.matches import visualize_matches
    from nnssl.figures.pca import visualize_pca
    from nnssl.figures.similarity import visualize_similarity
    from nnssl.figures.tsne import visualize_tsne
    from nnssl.figures.views import visualize_reconstruction, visualize_views
    from nnssl.finetuning.transfer_plans import transfer
    from nnssl.installation import check_installation
    from nnssl.label_efficiency.benchmark import benchmark
    from nnssl.matching.run import match
    from nnssl.pretraining.pretrain import pretrain

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "benchmark",
    "check_annotated_labels",
    "check_installation",
    "embed",
    "evaluate",
    "export_onnx",
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
    "benchmark": "nnssl.label_efficiency.benchmark",
    "check_annotated_labels": "nnssl.data.label_maps",
    "check_installation": "nnssl.installation",
    "embed": "nnssl.embedding.embed",
    "evaluate": "nnssl.evaluation.evaluate",
    "export_onnx": "nnssl.deployment.export",
    "load_pretrained": "nnssl.embedding.model",
    "match": "nnssl.matching.run",
    "measure_efficiency": "nnssl.deployment.efficiency",
    "plan_and_preprocess": "nnssl.data.plan_and_preprocess",
    "predict_onnx": "nnssl.deployment.predict",
    "pretrain": "nnssl.pretraining.pretrain",
    "propose_annotated_labels": "nnssl.data.label_maps",
    "transfer": "nnssl.finetuning.transfer_plans",
    "visualize_matches": "nnssl.figures.matches",
    "visualize_pca": "nnssl.figures.pca",
    "visualize_reconstruction": "nnssl.figures.views",
    "visualize_similarity": "nnssl.figures.similarity",
    "visualize_tsne": "nnssl.figures.tsne",
    "visualize_views": "nnssl.figures.views",
}


speak_in_nnunet_commands()


def __getattr__(name: str) -> Any:
    # torch and nnU-Net take seconds to import: `--help` must not wait for them
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'nnssl' has no attribute {name!r}")

"""Every command in the order of a user's work, with nnU-Net's own between ours, each in one line."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command as `nnssl`, its own help and docs/commands.md present it.

    Args:
        name: what the user types.
        does: what it does, as a verb phrase.
        output: its main output.
        module: in `nnssl.cli`; empty for a command of nnU-Net.
    """

    name: str
    does: str
    output: str
    module: str = ""


_RUN = "`nnssl_METHOD__PLANS__CONFIGURATION/` in `nnUNet_results`"
_PREPARED = "plans and volumes in `nnUNet_preprocessed`"
# fmt: off
STAGES: dict[str, tuple[Command, ...]] = {
    "begin": (
        Command("nnssl_doctor", "check the installation, nnU-Net's folders and the finished pretrainings",
                "a line for each check, with what to type", "doctor"),
        Command("nnssl_demo", "walk through all steps on drawn CTs, in minutes on two CPU cores",
                "`demo/report.md`, `dice.csv`, `comparison.png`", "demo"),
    ),
    "pretrain": (
        Command("nnssl_plan_and_preprocess", "plan and preprocess datasets, with or without labels",
                _PREPARED, "plan_and_preprocess"),
        Command("nnssl_pretrain", "pretrain a network on datasets, with or without labels", _RUN, "pretrain"),
        Command("nnssl_import", "make a pretraining from public weights", _RUN, "import_weights"),
    ),
    "look at what was learned": (
        Command("nnssl_visualize", "draw what a pretraining has learned", "a picture, and its numbers as JSON",
                "visualize"),
        Command("nnssl_embed", "write the features of images: a vector for each case, or dense maps",
                "`vectors.npz`, or a map for each case", "embed"),
        Command("nnssl_match", "find a point of one image in another image", "the point in mm and in voxels", "match"),
        Command("nnssl_classify", "classify whole scans, or predict a number for each, from pretrained features",
                "scores as `results.md`, and a model", "classify"),
        Command("nnssl_classify_predict", "predict the label of new scans with a model of nnssl_classify",
                "a table as CSV", "classify_predict"),
    ),
    "train and predict": (
        Command("nnssl_annotated_labels", "list which labels are annotated in which case, and check the list",
                "`annotated_labels` in `dataset.json`", "annotated_labels"),
        Command("nnssl_transfer", "prepare a labelled dataset for the weights of a pretraining", _PREPARED, "transfer"),
        Command("nnUNetv2_train", "train on the labelled dataset from these weights, with a trainer of this package",
                "a model folder in `nnUNet_results`"),
        Command("nnUNetv2_predict", "segment new images with the trained model", "label maps"),
    ),
    "measure": (
        Command("nnssl_evaluate", "compute Dice and surface Dice of predicted labels",
                "`nnssl_evaluation.csv`, `.json`, `summary.json`", "evaluate"),
        Command("nnssl_benchmark", "compare trainings on few and on many labels, on one test set",
                "tables and plots in `results/`", "benchmark"),
    ),
    "pass on": (
        Command("nnssl_export", "write the weights of a pretraining for other programs, with a model card",
                "a folder with weights and `README.md`", "export"),
        Command("nnssl_export_onnx", "write a trained network as an ONNX file", "an ONNX file", "export_onnx"),
        Command("nnssl_predict_onnx", "segment new images with ONNX files, without PyTorch's network", "label maps",
                "predict_onnx"),
        Command("nnssl_efficiency", "measure the time and memory that the prediction of each case takes",
                "a table, on request as CSV", "efficiency"),
    ),
}
# fmt: on
COMMANDS = tuple(command for stage in STAGES.values() for command in stage)
OURS = {command.name: command for command in COMMANDS if command.module}

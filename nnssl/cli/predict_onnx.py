"""`nnssl_predict_onnx`: nnU-Net's prediction with ONNX Runtime in the place of the network."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import IMAGES_LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import LEFT_OUT, entry

EPILOG = f"""examples:
  nnssl_predict_onnx -i IMAGES -o LABELS -m student.onnx -device cpu
  nnssl_predict_onnx -i IMAGES -o LABELS -m fold_0.onnx fold_1.onnx      an ensemble, as nnU-Net averages folds
  nnssl_predict_onnx -i IMAGES -o LABELS -m student.onnx -npp 0 -nps 0   in one process

Writes the files of nnUNetv2_predict_from_modelfolder on the model folder that was exported, and takes its flags. Plans,
dataset.json and mirroring axes come from the ONNX file; no trainer is looked up.
{IMAGES_LEFT_OUT}
Needs the extra: pip install onnxruntime
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments: those of nnUNetv2_predict_from_modelfolder."""
    # fmt: off
    p = new_parser(
        "nnssl_predict_onnx",
        "Predict a folder of images with ONNX files of nnssl_export_onnx: nnU-Net's preprocessing, sliding\n"
        "window, mirroring and resampling, with the network in ONNX Runtime.", EPILOG)
    add(p, "-i", dest="input_folder",
        help="folder of images named like case_0000.nii.gz, with the file ending of the training data")
    add(p, "-o", required=True, metavar="FOLDER", dest="output_folder", help="folder for the label maps")
    add(p, "-m", nargs="+", metavar="FILE", dest="models", help="ONNX file; several folds of a model are an ensemble")
    add_shared(p, "-step_size", "--disable_tta")
    add(p, "--save_probabilities", action="store_true", help="also write the probabilities of all classes")
    add(p, "--continue_prediction", "--c", action="store_true", help="leave out cases that are predicted already")
    add(p, "-npp", type=int, default=3, metavar="N", dest="num_processes_preprocessing",
        help="processes for preprocessing")
    add(p, "-nps", type=int, default=3, metavar="N", dest="num_processes_segmentation_export",
        help="processes for resampling and writing")
    add(p, "-prev_stage_predictions", metavar="FOLDER",
        help="label maps of the first stage, for the second stage of a cascade")
    add_shared(p, "-num_parts", "-part_id")
    add(p, "-device", help="where to compute (default: cuda where PyTorch and ONNX Runtime can use a card, else cpu)")
    add_shared(p, "-threads")
    add(p, "--disable_progress_bar", action="store_true", help="show no progress bar")
    add(p, "--not_on_device", action="store_true", help="sum the logits in main memory instead of on the card")
    add_shared(p, "--verbose")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import predict_onnx

    return LEFT_OUT if predict_onnx(**vars(arguments)) else 0


main = entry(parser, _command)

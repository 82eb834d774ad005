"""`nnssl_predict_onnx`: nnU-Net's prediction with ONNX Runtime in the place of the network."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXAMPLE_IMAGES, IMAGES_LEFT_OUT, LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_predict_onnx -m fold_0.onnx fold_1.onnx -i IMAGES -o predicted     an ensemble, as nnU-Net averages folds
  nnssl_predict_onnx -m model.onnx -i IMAGES -o predicted -npp 0 -nps 0    in one process

Writes the files of nnUNetv2_predict_from_modelfolder on the model folder that was exported, and takes its flags. Plans,
dataset.json and mirroring axes come from the ONNX file; no trainer is looked up.
Needs the extra: pip install onnxruntime
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments: those of nnUNetv2_predict_from_modelfolder."""
    # fmt: off
    p = new_parser(
        "nnssl_predict_onnx", f"nnssl_predict_onnx -m model.onnx -i {EXAMPLE_IMAGES} -o predicted", EPILOG,
        "Preprocessing, sliding window, mirroring and resampling are nnU-Net's; the network runs in ONNX Runtime.",
        IMAGES_LEFT_OUT)
    add(p, "-m", nargs="+", metavar="MODEL", dest="models",
        help="ONNX file of nnssl_export_onnx; several folds of a model are an ensemble")
    add(p, "-i", dest="input_folder")
    add(p, "-o", required=True, dest="output_folder")
    add_shared(p, "-step_size")
    add(p, "-npp", type=int, default=3, metavar="N", dest="num_processes_preprocessing",
        help="processes for preprocessing")
    add(p, "-nps", type=int, default=3, metavar="N", dest="num_processes_segmentation_export",
        help="processes for resampling and writing")
    add(p, "-prev_stage_predictions", metavar="FOLDER",
        help="label maps of the first stage, for the second stage of a cascade")
    add(p, "-device", help="where to compute (default: cuda where PyTorch and ONNX Runtime can use a card, else cpu)")
    add_shared(p, "-num_parts", "-part_id", "-threads", "--disable_tta")
    add(p, "--save_probabilities", action="store_true", help="also write the probabilities of all classes")
    add(p, "--not_on_device", action="store_true", help="sum the logits in main memory instead of on the card")
    add(p, "--c", "--continue_prediction", dest="continue_prediction")
    add(p, "--no_pbar", "--disable_progress_bar", dest="disable_progress_bar")
    add_shared(p, "--verbose")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import predict_onnx

    return LEFT_OUT if predict_onnx(**vars(arguments)) else 0


main = entry(parser, _command)

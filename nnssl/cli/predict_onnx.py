"""`nnssl_predict_onnx`: nnU-Net's prediction with ONNX Runtime in the place of the network."""

from __future__ import annotations

import argparse

from nnssl.cli.run import LEFT_OUT, run

EPILOG = """examples:
  nnssl_predict_onnx -i IMAGES -o LABELS -m student.onnx -device cpu
  nnssl_predict_onnx -i IMAGES -o LABELS -m fold_0.onnx fold_1.onnx      an ensemble, as nnU-Net averages folds
  nnssl_predict_onnx -i IMAGES -o LABELS -m student.onnx -npp 0 -nps 0   in one process

The files are those of nnUNetv2_predict_from_modelfolder on the model folder that was exported. Plans, dataset.json and
mirroring axes come from the ONNX file; no trainer is looked up. Needs the extra: pip install onnxruntime
Exit code 3: done, but images that cannot be used were left out.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments: those of nnUNetv2_predict_from_modelfolder."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_predict_onnx",
        description="Predict a folder of images with ONNX files of nnssl_export_onnx: nnU-Net's preprocessing,\n"
        "sliding window, mirroring and resampling, the network in ONNX Runtime.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-i", required=True, metavar="FOLDER", dest="input_folder",
                   help="images, named like case_0000.nii.gz, with the file ending of the training data")
    p.add_argument("-o", required=True, metavar="FOLDER", dest="output_folder", help="for the label maps")
    p.add_argument("-m", required=True, nargs="+", metavar="FILE", dest="models",
                   help="ONNX file; several folds of one model are an ensemble")
    p.add_argument("-step_size", type=float, default=0.5, metavar="X",
                   help="of the sliding window, as a fraction of the patch (default: 0.5)")
    p.add_argument("--disable_tta", action="store_true", help="do not mirror: faster, less accurate")
    p.add_argument("--save_probabilities", action="store_true", help="also write the probabilities of every class")
    p.add_argument("--continue_prediction", "--c", action="store_true", help="leave out what is already predicted")
    p.add_argument("-npp", type=int, default=3, metavar="N", dest="num_processes_preprocessing",
                   help="processes for preprocessing (default: 3)")
    p.add_argument("-nps", type=int, default=3, metavar="N", dest="num_processes_segmentation_export",
                   help="processes for resampling and writing (default: 3)")
    p.add_argument("-prev_stage_predictions", metavar="FOLDER",
                   help="label maps of the first stage, for the second stage of a cascade")
    p.add_argument("-num_parts", type=int, default=1, metavar="N", help="share the cases among N calls (default: 1)")
    p.add_argument("-part_id", type=int, default=0, metavar="I", help="which of them this is, from 0 on (default: 0)")
    p.add_argument("-device", default="cuda", choices=("cuda", "cpu"),
                   help="ONNX Runtime's execution provider (default: cuda)")
    p.add_argument("-threads", type=int, default=0, metavar="N",
                   help="threads of the network (default: 0, which is one a core)")
    p.add_argument("--disable_progress_bar", action="store_true", help="for logs that are files")
    p.add_argument("--not_on_device", action="store_true", help="sum the logits in the computer's memory")
    p.add_argument("--verbose", action="store_true", help="say more")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import predict_onnx

    return LEFT_OUT if predict_onnx(**vars(arguments)) else 0


if __name__ == "__main__":
    main()

"""`nnssl_export_onnx`: a trained network as an ONNX file that holds all that prediction needs."""

from __future__ import annotations

import argparse

from nnssl.cli.run import run

EPILOG = """examples:
  nnssl_export_onnx -m $nnUNet_results/Dataset017_Organs/nnUNetTrainer__nnUNetPlans__3d_fullres -f 0 -o student.onnx
  nnssl_predict_onnx -i IMAGES -o LABELS -m student.onnx

Any model folder will do that nnUNetv2_predict can use, 2D and cascades too. The file has the network (opset 18, any
batch size, the plans' patch) and in its metadata plans, dataset.json, configuration, fold, trainer and mirroring axes.
Its logits are compared with PyTorch's on random patches; the largest difference is printed, and above 1e-3 nothing is
written.
Needs the extra: pip install onnx onnxscript onnxruntime psutil
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_export_onnx",
        description="Write the network of a trained model folder as an ONNX file, checked against PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-m", required=True, metavar="FOLDER", dest="model_folder",
                   help="folder of the training, named TRAINER__PLANS__CONFIGURATION")
    p.add_argument("-f", default="0", metavar="FOLD", dest="fold",
                   help="a number or all (default: 0); for an ensemble export every fold to a file of its own")
    p.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", dest="checkpoint",
                   help="name of the checkpoint (default: checkpoint_final.pth)")
    p.add_argument("-o", required=True, metavar="FILE", dest="output_file", help="such as student.onnx")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import export_onnx
    from nnssl.data.next_lines import INPUT, OUTPUT, Way, command, device_flag, rendered
    from nnssl.deployment.session import usable_device

    export_onnx(**vars(arguments))
    line = command("nnssl_predict_onnx", "-i", INPUT, "-o", OUTPUT, "-m", arguments.output_file,
                   *device_flag(usable_device()))  # fmt: skip
    print(rendered([Way((line,))]))


if __name__ == "__main__":
    main()

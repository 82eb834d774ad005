"""`nnssl_export_onnx`: a trained network as an ONNX file that holds all that prediction needs."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXAMPLE_MODEL, ONNX_EXTRA, add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = f"""more examples:
  nnssl_export_onnx -m MODEL -f 1 -o fold_1.onnx
  nnssl_predict_onnx -m model.onnx -i IMAGES -o predicted

Takes any model folder that nnUNetv2_predict can use, 2D and cascades too. The file holds the network (opset 18, any
batch size, the plans' patch) and, in its metadata, plans, dataset.json, configuration, fold, trainer and mirroring
axes. Its logits are compared with PyTorch's on random patches; the largest difference is printed, and above 1e-3
nothing is written.
{ONNX_EXTRA}
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_export_onnx", f"nnssl_export_onnx -m {EXAMPLE_MODEL} -o model.onnx", EPILOG,
                   "The file is checked against PyTorch.")
    add(p, "-m", metavar="MODEL", dest="model_folder",
        help="model folder of a training, named TRAINER__PLANS__CONFIGURATION")
    add(p, "-o", required=True, metavar="FILE", dest="output_file", help="ONNX file to write")
    add(p, "-f", default="0", help="fold, a number or all; for an ensemble export each fold to a file of its own")
    add_shared(p, "-chk")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import export_onnx
    from nnssl.classification.export import export_classifier, is_classifier
    from nnssl.data.next_lines import INPUT, OUTPUT, Way, command, rendered

    if is_classifier(arguments.model_folder):
        export_classifier(arguments.model_folder, arguments.output_file, arguments.fold)
        return
    export_onnx(**vars(arguments))
    line = command("nnssl_predict_onnx", "-i", INPUT, "-o", OUTPUT, "-m", arguments.output_file)
    print(rendered([Way((line,))]))


main = entry(parser, _command)

"""`nnssl_export`: a pretraining as files for other programs and people, with a model card."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import RUN, add, new_parser
from nnssl.cli.run import entry

EPILOG = """examples:
  nnssl_export -m RUN -o OUT -license cc-by-4.0
  nnssl_export -m RUN -o OUT -format safetensors -license apache-2.0 -benchmark TABLE

formats:
  nnssl         checkpoint_final.pth with adaptation plan, which nnUNetv2_preprocess_like_nnssl and
                nnUNetv2_train_pretrained read: PlainConvUNet, ResidualEncoderUNet, Primus
  safetensors   model.safetensors and config.json, as on model hubs: any network (pip install safetensors)
  nnunet        nnunet_weights.pth and plans, for nnUNetv2_train -pretrained_weights

Each has a model card, README.md. OUT is a RUN in all our commands, and nnssl.load_pretrained reads it, in the first two
formats. Weights that were imported, or trained from such, keep their licence; where it allows no derived weights, those
are not exported.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_export", "Write the weights of a pretraining for other programs, with a model card.", EPILOG)
    add(p, "-m", help=f"pretraining: {RUN}, or an exported folder")
    add(p, "-o", required=True, metavar="OUT", dest="output", help="folder to make, whole or not at all")
    add(p, "-format", default="nnssl", choices=("nnssl", "safetensors", "nnunet"), help="see below")
    add(p, "-license", metavar="ID", dest="licence",
        help="licence of the weights, such as apache-2.0, cc-by-4.0 or cc-by-nc-4.0 (default: that of the weights that "
             "they come from, if any)")
    add(p, "-benchmark", metavar="FOLDER", help="output of nnssl_benchmark, whose results the model card shows")
    add(p, "--overwrite", action="store_true", help="replace an earlier export")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import export

    export(**vars(arguments))


main = entry(parser, _command)

if __name__ == "__main__":
    main()

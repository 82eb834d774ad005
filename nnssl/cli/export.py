"""`nnssl_export`: a pretraining as files for other programs and people, with a model card."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXAMPLE_RUN, RUN, add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_export -m RUN -o exported -format safetensors -license apache-2.0 -benchmark TABLE

formats:
  nnssl         checkpoint_final.pth with adaptation plan, which nnUNetv2_preprocess_like_nnssl and
                nnUNetv2_train_pretrained read: PlainConvUNet, ResidualEncoderUNet, Primus
  safetensors   model.safetensors and config.json, as on model hubs: any network (pip install safetensors)
  nnunet        nnunet_weights.pth and plans, for nnUNetv2_train -pretrained_weights

Each has a model card, README.md. In the first two formats the folder is a RUN in all our commands, and
nnssl.load_pretrained reads it. Weights that were imported, or trained from such, keep their licence; where it allows no
derived weights, those are not exported.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_export", f"nnssl_export -m {EXAMPLE_RUN} -o exported -license cc-by-4.0", EPILOG)
    add(p, "-m", help=f"pretraining: {RUN}, or an exported folder")
    add(p, "-o", required=True, help="folder to make, whole or not at all")
    add(p, "-format", default="nnssl", choices=("nnssl", "safetensors", "nnunet"),
        help="for nnU-Net's development version (nnssl), model hubs (safetensors) or stock nnU-Net (nnunet)")
    add_shared(p, "-license")
    add(p, "-benchmark", metavar="FOLDER", help="output of nnssl_benchmark, whose results the model card shows")
    add_shared(p, "--overwrite")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import export

    export(**vars(arguments))


main = entry(parser, _command)

if __name__ == "__main__":
    main()

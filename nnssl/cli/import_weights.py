"""`nnssl_import`: public weights become a finished pretraining."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import add, new_parser
from nnssl.cli.run import entry

EPILOG = """examples:
  nnssl_import vox2vec.pt -o Dataset900_Vox2vec
  nnssl_import MODEL_FOLDER -f 0 -o Dataset901_TotalSegmentator -license "Apache 2.0"
  nnssl_transfer -s 900 -t 17                then as after a pretraining

docs/interchange.md lists what can be read. Nothing in the file is executed.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_import",
        "Read public weights by their content and write them as a finished pretraining, which nnssl_transfer, the\n"
        "trainers, nnssl_embed, nnssl_visualize and nnssl_benchmark take.", EPILOG)
    p.add_argument("source", metavar="FILE_OR_FOLDER",
                   help="weights (PyTorch or safetensors), a folder with them, or a zip of a model folder")
    add(p, "-o", required=True, metavar="DATASET", dest="dataset",
        help="name under which they are kept, such as Dataset900_OpenMind; the number must be free")
    add(p, "-f", help="fold of a model folder of nnU-Net that has several")
    add(p, "-license", metavar="TEXT", dest="licence",
        help="licence of the weights, where it is not known or another one was given to you")
    add(p, "--overwrite", action="store_true", help="replace what an earlier import left there")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import import_weights

    import_weights(**vars(arguments))


main = entry(parser, _command)

if __name__ == "__main__":
    main()

"""`nnssl_import`: public weights become a finished pretraining."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """more examples:
  nnssl_import MODEL_FOLDER -f 0 -o Dataset901_TotalSegmentator -license "Apache 2.0"
  nnssl_transfer -s 900 -t 17                then as after a pretraining

docs/interchange.md lists what can be read. Nothing in the file is executed.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_import", "nnssl_import vox2vec.pt -o Dataset900_Vox2vec", EPILOG,
        "The file is recognised by its content; nnssl_transfer, the trainers, nnssl_embed, nnssl_visualize and "
        "nnssl_benchmark take the result.")
    add(p, "source", metavar="FILE_OR_FOLDER",
        help="weights (PyTorch or safetensors), a folder with them, or a zip of a model folder")
    add(p, "-o", required=True, metavar="DATASET", dest="dataset",
        help="name under which they are kept, such as Dataset900_OpenMind; the number must be free")
    add(p, "-f", help="fold of a model folder of nnU-Net that has several")
    add_shared(p, "-license", "--overwrite")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import import_weights

    import_weights(**vars(arguments))


main = entry(parser, _command)

if __name__ == "__main__":
    main()

"""`nnssl_transfer`: plans and volumes of a labelled dataset that a pretraining's weights fit exactly."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import LEFT_OUT, VOLUMES_LEFT_OUT, add, add_shared, new_parser
from nnssl.cli.run import entry
from nnssl.methods.registry import method_names

EPILOG = """more examples:
  nnssl_transfer -s 500 -t 17 -m vox2vec     where dataset 500 has several finished pretrainings
  nnssl_transfer -s MODEL_FOLDER -t 17       from a network that nnU-Net trained
  nnssl_transfer -s 500 -t 17 -m random      the baseline: the same network and volumes, random weights

Prints the nnUNetv2_train lines to type next.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_transfer", "nnssl_transfer -s 500 -t 17", EPILOG,
        "Plans and preprocesses it with the spacing, intensities and network of the pretraining; the plans name its "
        "checkpoint.",
        VOLUMES_LEFT_OUT)
    add(p, "-s", required=True, metavar="ID|RUN", dest="source",
        help="dataset of the pretraining, by number or name; or a run's folder, also a model folder of nnU-Net")
    add(p, "-t", required=True, metavar="ID", dest="target", help="labelled dataset, by number or name")
    add(p, "-m", required=False, metavar="METHOD|random", dest="method",
        help=f"method of the pretraining ({', '.join(method_names())}), or random for the baseline (random:METHOD "
             "where pretrainings differ in their network)")
    add(p, "-c", default=None, help="configuration of the pretraining")
    add(p, "-p", default=None, help="plans of the pretraining")
    add(p, "-f", help="fold of the pretraining, a number or all")
    add(p, "-overwrite_plans_name", help="another name for the new plans (default: <plans>From<ID>_<METHOD>)")
    add_shared(p, "-np")
    add_shared(p, "--overwrite_plans", "--overwrite_volumes", "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> int:
    from nnssl import transfer

    return LEFT_OUT if transfer(**vars(arguments)).prepared.left_out else 0


main = entry(parser, _command)

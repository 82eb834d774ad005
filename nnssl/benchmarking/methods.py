"""The methods that a benchmark compares: trainer, plans, and the pretraining that a training starts from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.checkpoints.pretrained import RANDOM, VARIABLE
from nnssl.checkpoints.runs import checkpoint_of
from nnssl.core.errors import UserError
from nnssl.core.names import check_name, shown
from nnssl.core.trainer_search import find_trainer
from nnssl.data.pool import quietly
from nnssl.data.trusted import read_nnunet_checkpoint
from nnssl.finetuning.start import find_checkpoint
from nnssl.networks.trusted import VARIABLE as TRUSTED

SEED = "{seed}"
_OF_PARAMETER_SIZE = ("exp_avg", "momentum_buffer")  # Adam and its kin, SGD

log = logging.getLogger("nnssl")


def trainable_parameters(fold_folder: Path) -> int | None:
    """Number of values that the optimiser of a finished training has changed; None if it keeps no state of them.

    It comes from the optimiser's state in `checkpoint_final.pth`: a frozen backbone does not count, one unfrozen during
    the training does. Deep supervision outputs with weight 0 in the loss never change and do not count. A checkpoint
    that is not opened, because a trainer of the user's own wrote it, gives None and a warning.
    """
    file = fold_folder / "checkpoint_final.pth"
    try:
        return count_trained(read_nnunet_checkpoint(file)["optimizer_state"])
    except UserError as error:
        log.warning(f"the number of trained parameters is unknown: {error}")
        return None


def count_trained(optimiser: dict[str, Any]) -> int | None:
    """Number of values that an optimiser has changed, from its state; None if it keeps none."""
    moved = [_size(state) for state in optimiser["state"].values()]
    return sum(moved) or None


def _size(state: dict[str, Any]) -> int:
    found = (state.get(name) for name in _OF_PARAMETER_SIZE)
    return next((tensor.numel() for tensor in found if isinstance(tensor, Tensor)), 0)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_FORM = "an item is TRAINER or NAME=TRAINER[,PLANS[,CHECKPOINT]][,nnssl_VARIABLE=VALUE ...]"


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Args:
        name: in tables and folders.
        trainer: class for nnUNetv2_train.
        plans: name of the plans.
        checkpoint: start of the training: a path, `random`, or None if it is not given or not needed. `{seed}` in a
            path stands for the number of the seed.
        variables: environment of the training, without nnU-Net's folders.
    """

    name: str
    trainer: str
    plans: str
    checkpoint: str | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All fields except the name, as JSON types."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def variables_of(self, seed: int) -> dict[str, str]:
        """Environment of the trainings of a seed: `{seed}` in the checkpoint replaced by the number."""
        start = self.variables.get(VARIABLE)
        return self.variables if start is None else {**self.variables, VARIABLE: _of_seed(start, seed)}


def read_methods(items: Sequence[str], plans: str) -> list[Method]:
    """Read the methods that `-tr` lists.

    Args:
        items: `TRAINER`, or `NAME=TRAINER,PLANS,CHECKPOINT` followed by any `nnssl_VARIABLE=VALUE`; missing or empty
            parts have their defaults.
        plans: default plans.

    Raises:
        UserError: an item does not have that form, or two have the same name.
    """
    methods = [_read(item, plans) for item in items]
    names = [m.name for m in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"-tr holds {twice[0]} twice; give the items names: NAME=TRAINER,PLANS,CHECKPOINT")
    return methods


def _read(item: str, plans: str) -> Method:
    head, *fields = item.split(",")
    name, sign, trainer = head.partition("=")
    if not sign:
        trainer = name
    variables = dict(f.split("=", 1) for f in fields if "=" in f and f.startswith(("nnssl_", "nnUNet_")))
    places = [f for f in fields if f.split("=", 1)[0] not in variables]
    if not trainer or not _NAME.fullmatch(name) or len(places) > 2:
        raise UserError(f"-tr cannot read {shown(item)}: {_FORM}, and a name consists of letters, digits, '_', '-', "
                        f"'.', '+', at most 100")  # fmt: skip
    given, checkpoint = (*places, "", "")[:2]
    check_name(trainer, "trainer", "-tr")
    check_name(given or plans, "plans", "-tr" if given else "-p")
    return Method(name, trainer, given or plans, checkpoint or None, variables)


def resolve(
    method: Method, plans: dict[str, Any], configuration: str, environment: Mapping[str, str], seeds: int = 1
) -> Method:
    """Complete a method with the full path of its checkpoint and with all variables of its training.

    The trainings could not find a pretraining themselves, because they have their own nnUNet_results.

    Args:
        method: as typed.
        plans: its plans.
        configuration: of the plans.
        environment: the caller's; its `nnssl_...` variables apply to all methods.
        seeds: number of seeds, for a checkpoint with `{seed}`.

    Raises:
        UserError: there is no such trainer; or it needs a pretraining and there is none, or several.
    """
    own = {VARIABLE, TRUSTED}  # the first is resolved below; the second changes no training
    variables = {k: v for k, v in environment.items() if k.startswith("nnssl_") and k not in own} | method.variables
    if VARIABLE in method.variables:
        raise UserError(f"-tr names {VARIABLE} for {method.name}; write the checkpoint as its third part: {_FORM}")
    checkpoint = None
    if _starts_from_pretraining(method.trainer):
        checkpoint = _checkpoint(method, plans, configuration, environment, seeds)
        variables[VARIABLE] = checkpoint
    elif method.checkpoint is not None:
        raise UserError(f"{method.trainer} starts from no pretraining; leave out the checkpoint of {method.name}")
    return Method(method.name, method.trainer, method.plans, checkpoint, dict(sorted(variables.items())))


def stops_early(method: Method, plans: Mapping[str, Any]) -> bool:
    """Whether the training chooses its weights by its validation loss (`nnssl.finetuning.early_stopping`).

    Args:
        method: from `resolve`.
        plans: its plans.
    """
    from nnssl.finetuning.base_trainer import given
    from nnssl.finetuning.early_stopping import EarlyStopping

    found = _find_trainer(method.trainer)
    asked = given("patience", plans.get("nnssl", {}), method.variables)
    return issubclass(found, EarlyStopping) and bool(asked or found.patience)


def _of_seed(start: str, seed: int) -> str:
    return start.replace(SEED, str(seed))


def _starts_from_pretraining(trainer: str) -> bool:
    from nnssl.finetuning.trainer import PretrainedTrainer

    found = _find_trainer(trainer)
    return issubclass(found, PretrainedTrainer) and not found.from_scratch


@cache
def _find_trainer(name: str) -> Any:
    try:
        with quietly():
            return find_trainer(name)
    except RuntimeError as error:
        raise UserError(f"nnU-Net finds no trainer {name}; mend the name, or see what nnssl_doctor says") from error


def _checkpoint(
    method: Method, plans: dict[str, Any], configuration: str, environment: Mapping[str, str], seeds: int
) -> str:
    if method.checkpoint == RANDOM:
        return RANDOM
    if method.checkpoint is not None:
        per_seed = SEED in method.checkpoint
        try:
            files = [checkpoint_of(_of_seed(method.checkpoint, seed)) for seed in range(seeds if per_seed else 1)]
        except UserError as error:
            raise UserError(f"{method.name}: {error}") from error
        return str(Path(method.checkpoint).absolute() if per_seed else files[0].resolve())
    results = Path(environment.get("nnUNet_results") or os.devnull)
    choice = find_checkpoint(_find_trainer(method.trainer).wanted(plans, configuration), results)
    if choice.note:
        log.info(f"{method.name}: {choice.note}")
    return str(choice.path or RANDOM)

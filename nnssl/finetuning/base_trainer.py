"""What every trainer adds to nnU-Net's: checks, a split without unusable cases, length and rate by variables."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnssl.checkpoints.files import FINAL
from nnssl.core.errors import UserError
from nnssl.core.files import checked, read_json
from nnssl.core.names import nearest, shown
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import ONLINE, DatasetFile, SplitsFile
from nnssl.data.inventory import named
from nnssl.data.next_lines import Way, predict_line, rendered
from nnssl.data.records import labels_digest, unused_cases
from nnssl.data.report import settings_digest
from nnssl.data.trusted import only_plain_types, refuse_untrusted_names
from nnssl.finetuning.early_stopping import EarlyStopping
from nnssl.finetuning.freezing import FrozenParts
from nnssl.finetuning.settings import given
from nnssl.finetuning.stuck import StuckAlarm
from nnssl.networks.trusted import trusted_network


class CheckedTrainer(FrozenParts, StuckAlarm, EarlyStopping):
    """nnU-Net's trainer, but code runs neither from names in the plans nor from a checkpoint.

    After the validation, which is what nnUNetv2_train ends with, it says how to predict.
    """

    test_mirroring: bool = True  # in the validation after the training, and in prediction
    _checkpoint: str = FINAL  # whose weights are validated
    _axes: Any = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (as in nnU-Net, which reads the signature)
    ) -> None:
        refuse_bad_files(plans, configuration, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.set_up()

    def set_up(self) -> None:
        """What a trainer sets before anything is built; the variables and the plans' block have the last word.

        Raises:
            UserError: as of `apply_settings` and `asked_freezing`.
        """
        block = self.plans_manager.plans.get("nnssl", {})
        apply_settings(self, block)
        self.set_freezing(block)

    @property
    def inference_allowed_mirroring_axes(self) -> Any:
        """Axes that prediction mirrors, as nnU-Net or a recipe sets them; None without `test_mirroring`.

        Checkpoints keep them, so that nnUNetv2_predict mirrors as the validation did.
        """
        return self._axes if self.test_mirroring else None

    @inference_allowed_mirroring_axes.setter
    def inference_allowed_mirroring_axes(self, axes: Any) -> None:
        """Keep them, for the case that the tests are mirrored."""
        self._axes = axes

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network, of classes that plans may name."""
        network: nn.Module = nnUNetTrainer.build_network_architecture(
            plans_manager,
            trusted_manager(plans_manager, configuration_manager),
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        return network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As nnU-Net's, where the network has several outputs."""
        if self.enable_deep_supervision:
            super().set_deep_supervision_enabled(enabled)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on with a checkpoint of this trainer.

        Raises:
            UserError: it holds more than tensors, plain types and numbers of numpy, or began with other parts frozen.
        """
        with only_plain_types(filename_or_checkpoint):
            super().load_checkpoint(filename_or_checkpoint)
        self.go_on_frozen(self.my_init_kwargs["plans"].get("nnssl") or {})
        if isinstance(filename_or_checkpoint, (str, Path)):
            self._checkpoint = Path(filename_or_checkpoint).name

    def on_train_end(self) -> None:
        """As nnU-Net's, which writes the final checkpoint."""
        super().on_train_end()
        self._checkpoint = CheckedTrainer._checkpoint

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, then what a trainer adds; the last lines say what to type next."""
        super().perform_actual_validation(save_probabilities)
        self.after_validation()
        if self.local_rank == 0 and (Path(self.output_folder) / self._checkpoint).is_file():
            line = predict_line(self.plans_manager.dataset_name, self.configuration_name, self.fold,
                                type(self).__name__, self.plans_manager.plans_name, self._checkpoint,
                                self.device.type)  # fmt: skip
            self.print_to_log_file(rendered([Way((line,))]), add_timestamp=False)

    def after_validation(self) -> None:
        """What a trainer adds to nnU-Net's validation."""


def refuse_bad_files(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> None:
    """Check what nnU-Net hands to a trainer before its own code makes folders of the names in it.

    Raises:
        UserError: plans or dataset.json do not fit their schemas, or the plans have no such configuration.
    """
    checked(plans, PlansFile, f"the plans {shown(plans.get('plans_name'))}", "restore them, or take others with -p")
    checked(dataset_json, DatasetFile, "dataset.json in nnUNet_preprocessed")
    if configuration not in plans["configurations"]:
        raise UserError(f"the plans {plans['plans_name']} have no configuration {shown(configuration)}; they have "
                        f"{', '.join(plans['configurations'])}")  # fmt: skip


def trusted_manager(plans: PlansManager, configuration: ConfigurationManager) -> ConfigurationManager:
    """The configuration, after a look at all names that prediction uses too.

    Raises:
        UserError: one of them must not be used.
    """
    refuse_untrusted_names(plans.plans, configuration.configuration)
    return ConfigurationManager(trusted_network(configuration.configuration))


class UsableCases(CheckedTrainer):
    """Leaves out cases that were taken out of the raw dataset, and volumes made with other plans, and says so.

    While it trains it validates on the `online_val` of its fold, where splits_final.json has that beside `val`.
    """

    _told: tuple[str, ...] = ()

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's training and validation cases, without those.

        Raises:
            UserError: nothing is left of either.
        """
        training, validation = super().do_split()
        folder, plans = Path(self.preprocessed_dataset_folder), self.plans_manager.plans
        unused = unused_cases(folder, settings_digest(plans, self.configuration_name))
        dropped = sorted({*training, *validation} & unused.keys())
        advice = (f"nnssl_plan_and_preprocess -d {folder.parent.name} -p {plans['plans_name']} "
                  f"-c {self.configuration_name}")  # fmt: skip
        reasons = named([f"{case} ({unused[case]})" for case in dropped])
        training, validation = ([case for case in cases if case not in unused] for cases in (training, validation))
        if dropped and not (training and validation):
            raise UserError(f"no {'validation' if training else 'training'} case of fold {self.fold} may be used: "
                            f"{reasons}; take another fold, or prepare the volumes: {advice}")  # fmt: skip
        if dropped:
            self._say(f"WARNING: {len(dropped)} cases of this fold are not used: {reasons}")
        labels = labels_digest(self.dataset_json)
        if stale := unused_cases(folder, None, labels).keys() - unused_cases(folder).keys():
            self._say(f"WARNING: {len(stale)} volumes were made when dataset.json had other labels, so that patches "
                      f"are not drawn by the new ones; prepare them anew: {advice}")  # fmt: skip
        return training, validation

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's data sets of training and of validation while training."""
        training, validation = super().get_tr_and_val_datasets()
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold == "all" or not file.is_file():
            return training, validation
        splits = read_json(file, SplitsFile)
        online = splits[int(self.fold)].get(ONLINE, []) if int(self.fold) < len(splits) else []
        if not online:
            return training, validation
        self._say(f"The validation loss is that of {len(online)} cases that are neither in training nor in the "
                  f"validation after it")  # fmt: skip
        usable = sorted(set(online) - unused_cases(Path(self.preprocessed_dataset_folder)).keys())
        return training, type(validation)(self.preprocessed_dataset_folder, usable)

    def _say(self, warning: str) -> None:
        """Once: nnU-Net splits several times."""
        if warning not in self._told:
            self._told = (*self._told, warning)
            self.print_to_log_file(warning)


class RateByEpoch:
    """A scheduler as nnU-Net's trainers use one: every epoch sets the rate of all parameter groups.

    A group with a `rate_factor` has that times the rate.

    Args:
        optimiser: Whose rate is set.
        rate: Of an epoch, counted from 0.
    """

    def __init__(self, optimiser: Optimizer, rate: Callable[[int], float]) -> None:
        self.optimiser, self.rate = optimiser, rate

    def step(self, epoch: int) -> None:
        """Set the rate of an epoch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(epoch) * group.get("rate_factor", 1.0)


LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "patience")
RATE = "initial_lr"
MIRRORING = "test_mirroring"
OUTPUT_FACTOR = "output_factor"
_VARIABLES = (
    *LENGTHS,
    RATE,
    MIRRORING,
    "recipe",
    OUTPUT_FACTOR,
    "freeze",
    "freeze_steps",
    "checkpoint",
    "teacher",
    "trusted_modules",
    "tensorboard",
)  # all: nnssl_...
_WHOLE = re.compile(r"0*[1-9][0-9]{0,8}")


def apply_settings(trainer: Any, block: Mapping[str, Any]) -> None:
    """Set a trainer's lengths, patience, rate and mirroring: from `nnssl_num_epochs` and so on, else the plans' block.

    Raises:
        UserError: a length is no whole number of at least 1, the rate is no number above 0, the mirroring neither 0 nor
            1, or the environment has a misspelt name of a variable.
    """
    _refuse_misspelt()
    for name in LENGTHS:
        value = given(name, block)
        if value is None:
            continue
        if not _WHOLE.fullmatch(value):
            raise UserError(f"nnssl_{name} takes a whole number from 1 to 999999999, not {shown(value)}; type: export "
                            f"nnssl_{name}=10")  # fmt: skip
        setattr(trainer, name, int(value))
    if (value := given(RATE, block)) is not None:
        setattr(trainer, RATE, above_zero(RATE, value))
    if (value := given(MIRRORING, block)) is not None:
        if value not in ("0", "1"):
            raise UserError(f"nnssl_{MIRRORING} takes 0 or 1, not {shown(value)}; type: export nnssl_{MIRRORING}=0")
        setattr(trainer, MIRRORING, value == "1")


def _refuse_misspelt() -> None:
    """Nothing would read it, and hours would pass with another recipe; names unlike ours may be another package's."""
    for name in os.environ:
        word = name.removeprefix("nnssl_")
        if word != name and word not in _VARIABLES and (meant := nearest(word, _VARIABLES)):
            raise UserError(f"nothing reads the variable {shown(name)}; unset it and, if you meant it, type: export "
                            f"nnssl_{meant}=VALUE")  # fmt: skip


def above_zero(name: str, value: str) -> float:
    """The number of a setting.

    Raises:
        UserError: it is none above 0.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        example = 0.001 if name == RATE else 10
        raise UserError(f"nnssl_{name} takes a number above 0, not {shown(value)}; type: export nnssl_{name}={example}")
    return number

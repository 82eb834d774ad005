"""What all trainers of this package begin with: plans and checkpoints of other people are looked at before use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.core.json_files import checked
from nnssl.core.names import shown
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import DatasetFile
from nnssl.data.next_lines import Way, predict_line, rendered
from nnssl.data.nnunet_checkpoint import only_plain_types
from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.errors import UserError
from nnssl.networks.trusted import trusted_network


class CheckedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, but code runs neither from names in the plans nor from a checkpoint.

    After the validation, which is what nnUNetv2_train ends with, it says how to predict.
    """

    _checkpoint: str = "checkpoint_final.pth"  # whose weights are validated

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

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on with a checkpoint of this trainer.

        Raises:
            UserError: it holds more than tensors, plain types and numbers of numpy.
        """
        with only_plain_types(filename_or_checkpoint):
            super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, (str, Path)):
            self._checkpoint = Path(filename_or_checkpoint).name

    def on_train_end(self) -> None:
        """As nnU-Net's, which writes the final checkpoint."""
        super().on_train_end()
        self._checkpoint = CheckedTrainer._checkpoint

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's; then what belongs to it, and what to type next as the very last lines."""
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

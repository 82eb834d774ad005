"""What all trainers of this package begin with: plans and checkpoints of other people are looked at before use."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.core.json_files import checked
from nnssl.core.names import shown
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import DatasetFile
from nnssl.data.nnunet_checkpoint import only_plain_types
from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.errors import UserError
from nnssl.networks.trusted import trusted_network


class CheckedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, but code runs neither from names in the plans nor from a checkpoint."""

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

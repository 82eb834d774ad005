"""What all trainers of this package begin with: plans and checkpoints of other people are looked at before use."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.data.nnunet_checkpoint import only_plain_types
from nnssl.data.trusted_names import refuse_untrusted_names
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
        refuse_untrusted_names(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)
        refuse_untrusted_names(plans, self.configuration_manager.configuration)

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


def trusted_manager(plans: PlansManager, configuration: ConfigurationManager) -> ConfigurationManager:
    """The configuration, after a look at all names that prediction uses too.

    Raises:
        UserError: one of them must not be used.
    """
    refuse_untrusted_names(plans.plans, configuration.configuration)
    return ConfigurationManager(trusted_network(configuration.configuration))

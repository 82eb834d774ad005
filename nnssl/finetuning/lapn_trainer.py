"""Training of the plans' U-Net on the image and the encodings of a frozen pixel encoder (LAPN; methods.md 5.5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.data.guard import ALLOWED
from nnssl.errors import UserError
from nnssl.finetuning.checked_trainer import trusted_manager
from nnssl.finetuning.encoded_segmentation import build_encoded_segmentation
from nnssl.finetuning.flare_recipe import FlareRecipe
from nnssl.finetuning.intensity import bridge_intensities
from nnssl.finetuning.pixel_encoder import read_pixel_encoder
from nnssl.finetuning.pretrained import name_of, read_pretrained
from nnssl.finetuning.segmentation import described_network
from nnssl.finetuning.start import Start, refuse_second_stage
from nnssl.finetuning.trainer import PretrainedTrainer
from nnssl.finetuning.which_run import ENCODINGS, Wanted, check_fits, find_checkpoint, image_warnings, transfer_advice
from nnssl.networks.build import resolve_configuration
from nnssl.networks.monai_unet import has_deep_supervision
from nnssl.partial_labels.trainer import PartialLabels


class EncodingsTrainer(FlareRecipe, PartialLabels, PretrainedTrainer):
    """Frozen encodings and the image enter the plans' U-Net by two stems; partial labels, deep supervision as planned.

    The encoder is computed anew for every augmented patch. Nothing is mirrored, as for every frozen network here.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (as in nnU-Net, which reads the signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = has_deep_supervision(self.configuration_manager.configuration)

    @classmethod
    def wanted(cls, plans: dict[str, Any], configuration: str) -> Wanted:
        """Encodings of single pixels."""
        return Wanted(cls.__name__, cls.method, ENCODINGS, plans, configuration)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build encoder and U-Net from the plans alone, as prediction does."""
        return build_encoded_segmentation(
            described_network(plans_manager.plans),
            trusted_manager(plans_manager, configuration_manager).configuration,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As nnU-Net's, where the plans' network has several outputs."""
        if self.enable_deep_supervision:
            self.network_module.decoder.deep_supervision = enabled

    def _resolve_start(self, results: Path) -> Start:
        return find_encoder(
            replace(self.wanted(self.plans_manager.plans, self.configuration_name), seen=self._seen()), results
        )


def find_encoder(wanted: Wanted, results: Path) -> Start:
    """Resolve the pixel encoder that a training starts from, and all that the network needs of it.

    Args:
        wanted: the target and its trainer.
        results: nnUNet_results.

    Raises:
        UserError: no checkpoint or several, of another method or modality, or random weights; intensities that cannot
            be bridged; a 2D or unknown configuration, or the second stage of a cascade.
    """
    plans, configuration, trainer = wanted.plans, wanted.configuration, wanted.trainer
    resolved = resolve_configuration(plans, configuration)
    refuse_second_stage(resolved, configuration, trainer)
    block = dict(plans.get("nnssl", {}))
    choice = find_checkpoint(wanted, results)
    path = choice.path
    if path is None:
        raise UserError(f"{trainer} needs the encodings of a pretraining, and random weights are asked for; train "
                        f"nnUNetTrainer_PartialLabels to see what the encodings bring")  # fmt: skip
    source = read_pretrained(path)
    check_fits(source, wanted)
    encoder = read_pixel_encoder(path)
    state = encoder.encoder.state_dict()
    left = {name: number for name, number in source.others.items() if name not in state}
    bridge = bridge_intensities(plans, source.plans, (configuration, source.configuration), bool(block.get(ALLOWED)))
    found = {"checkpoint": name_of(path, results), "method": source.method, "levels": source.levels,
             "network": {"encoder": encoder.architecture, "intensity": bridge.channels}}  # fmt: skip
    advice = transfer_advice(plans, source)
    warnings = [*bridge.warnings, *image_warnings(wanted, source)]
    notes = [choice.note] if choice.note else []
    return Start({**block, **found}, replace(source, backbone=state, others=left), advice, warnings, notes)

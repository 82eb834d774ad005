"""nnU-Net's trainer, started from a pretraining; and the record of what it started from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.checkpoints.loading import TransferReport
from nnssl.checkpoints.pretrained import RANDOM, VARIABLE, load_pretrained
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import TransferFile
from nnssl.core.plans_schema import PlansFile
from nnssl.data.check_case import orientation
from nnssl.data.guard import Images, names_of_channels
from nnssl.data.trusted import read_nnunet_checkpoint
from nnssl.finetuning.base_trainer import RATE, RateByEpoch, UsableCases, trusted_manager
from nnssl.finetuning.frozen_parts import DECODER, ENCODER, parameters_of, part_in_words
from nnssl.finetuning.segmentation import build_segmentation, described_network
from nnssl.finetuning.start import ENCODINGS, Head, Start, Wanted, find_start
from nnssl.finetuning.stuck import head_warning

RECORD = "nnssl_transfer.json"
PAPER_EPOCHS = 150  # of 300 steps: 45,000 steps
_ORIENTED = 20  # training volumes whose orientation is read


class PretrainedTrainer(UsableCases):
    """A pretrained feature pyramid and a segmentation head, trained with nnU-Net's data, augmentation and loss.

    Nothing is mirrored, in training or in prediction: pretraining never saw mirrored anatomy, and a frozen backbone
    cannot get used to it (linear probe on hippocampus: mean Dice 0.46 with mirroring, 0.69 without).

    Adam at a rate of 3e-4 without decay for 150 epochs of 300 steps, as in vox2vec (paper, section 4; methods.md 1.5).
    The network is that of the plans. `plans["nnssl"]` says which checkpoint fills it and, once the training has begun,
    all that prediction needs to build it again.
    """

    method: ClassVar[str | None] = None  # the only one whose checkpoints will do
    head: ClassVar[Head] = "nonlinear"
    from_scratch: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False
    rate: ClassVar[float] = 3e-4
    decay: ClassVar[float] = 0.0
    epochs: ClassVar[int] = PAPER_EPOCHS
    steps: ClassVar[int] = 300  # an epoch
    _goes_on: bool = False  # with a checkpoint of this trainer
    network: Any
    optimizer: Any
    lr_scheduler: Any

    def set_up(self) -> None:
        """Set the recipe of the class, then what the other bases set."""
        self.initial_lr, self.weight_decay = self.rate, self.decay
        self.enable_deep_supervision = False  # the heads give one output
        self.num_epochs, self.num_iterations_per_epoch = self.epochs, self.steps
        super().set_up()

    @classmethod
    def wanted(cls, plans: dict[str, Any], configuration: str) -> Wanted:
        """What the trainer wants of a pretraining, for these plans."""
        return Wanted(cls.__name__, cls.method, cls.head, plans, configuration)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network from the plans alone, as prediction does."""
        network = described_network(plans_manager.plans)
        configuration = trusted_manager(plans_manager, configuration_manager).configuration
        return build_segmentation(network, configuration, num_input_channels, num_output_channels)

    def initialize(self) -> None:
        """Build the network and fill it from the pretraining; a continued training needs no pretraining any more."""
        if self._goes_on or self.was_initialized:
            super().initialize()
            return
        start = self._find_start()
        refuse_mixture(start, Path(self.output_folder_base), Path(self.output_folder))
        self._block.update(start.block)
        super().initialize()
        self.network_module.check_patch(self.configuration_manager.patch_size, self.batch_size)
        self._fill(start)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on with a checkpoint of this trainer, which says how its network is built."""
        content = filename_or_checkpoint
        if not isinstance(content, dict):
            content = read_nnunet_checkpoint(content)
        began = content["init_args"]["plans"]["nnssl"]
        self.take_up(began)
        self._block.clear()
        self._block.update(began)
        self._goes_on = True
        if not self.was_initialized:
            self.initialize()
        self.prepare_optimiser(len(content["optimizer_state"]["param_groups"]))
        super().load_checkpoint(filename_or_checkpoint)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam at a constant rate over what is trained; a frozen backbone is not in it."""
        optimiser = torch.optim.Adam(self.trained_parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimiser, RateByEpoch(optimiser, lambda _: self.initial_lr)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """As nnU-Net's, but without mirroring unless the trainer `mirrors`."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirrors:
            axes, self.inference_allowed_mirroring_axes = (), None
        return rotation, flat, size, axes

    def on_train_start(self) -> None:
        """As nnU-Net's; warn of a head that cannot learn in these steps."""
        super().on_train_start()
        if self.current_epoch == 0 and (warning := self._head_warning()):
            self.print_to_log_file(f"WARNING: {warning}")

    def _head_warning(self) -> str | None:
        return head_warning(self.head, self.num_epochs * self.num_iterations_per_epoch, self.initial_lr)

    def stuck_advice(self) -> str:
        """The steps and the rate where they cannot do; else a higher rate, and random weights to compare with."""
        if too_little := self._head_warning():
            return too_little
        advice = f"train again at a higher rate (export nnssl_{RATE}={3 * self.initial_lr:g})"
        random = self.from_scratch or self._block.get("checkpoint") == RANDOM
        return advice if random else f"{advice}, and from random weights to compare (export {VARIABLE}={RANDOM})"

    def of_network(self) -> dict[str, Any]:
        """What the recipe adds to the description of the network, see `build_segmentation`."""
        return {}

    def take_up(self, began: dict[str, Any]) -> None:
        """Go on with what a checkpoint's `plans["nnssl"]` says of its training, before the network is built."""

    def prepare_optimiser(self, groups: int) -> None:
        """Make the optimiser ready for the state of one with this number of parameter groups."""

    @property
    def network_module(self) -> Any:
        """As `plain_network`."""
        return self.plain_network

    @property
    def _block(self) -> dict[str, Any]:
        block: dict[str, Any] = self.plans_manager.plans.setdefault("nnssl", {})
        return block

    def _find_start(self) -> Start:
        if not nnUNet_results.is_set():
            raise UserError("the folder variable nnUNet_results is not set; type: export nnUNet_results=/path/to/it")
        wanted = self.wanted(self.plans_manager.plans, self.configuration_name)
        if not self.from_scratch:
            wanted = replace(wanted, seen=self._seen())
        start = find_start(wanted, self.from_scratch, Path(str(nnUNet_results)))
        start.block["network"].update(self.of_network())
        for note in start.notes:
            self.print_to_log_file(f"Note: {note}")
        for warning in start.warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        return start

    def _seen(self) -> Images:
        """What the guard asks of the dataset."""
        training, _ = self.get_tr_and_val_datasets()
        some = sorted(training.identifiers)[:_ORIENTED]
        oriented = {case: orientation(training.load_case(case)[3]) for case in some}
        return Images("", names_of_channels(self.dataset_json), orientations=oriented)

    def _fill(self, start: Start) -> None:
        """Load the pretrained weights, and say what became of every tensor."""
        network, report = self.network_module, None
        self.print_to_log_file(f"Backbone from {start.block['checkpoint']} ({start.block['levels']} levels)")
        if start.source is not None:
            report = load_pretrained(network, start.source, start.advice)
            for line in report.lines():
                self.print_to_log_file(line, add_timestamp=False)
            if self.head != ENCODINGS:
                self.print_to_log_file(loaded_parts(network, report, self.configuration_manager.configuration))
        trained = {id(p): p.numel() for p in network.parameters() if p.requires_grad}
        pretrained = network.pretrained_tensors().values()
        of_backbone = sum(trained.get(id(tensor), 0) for tensor in pretrained)
        backbone = sum(tensor.numel() for tensor in pretrained if isinstance(tensor, nn.Parameter))
        self.print_to_log_file(f"{sum(trained.values()):,} trainable parameters, {of_backbone:,} of them among the "
                               f"{backbone:,} of the backbone")  # fmt: skip
        if self.local_rank == 0:
            write_record(start, report, Path(self.output_folder), self.frozen_record())


def refuse_mixture(start: Start, model_folder: Path, fold_folder: Path) -> None:
    """Make sure that a training replaces no fold that began elsewhere, and predicts together with the other folds.

    All folds of a model share one plans.json, which prediction builds the network from.

    Raises:
        UserError: naming the folder and what to do.
    """
    record = fold_folder / RECORD
    if record.is_file() and any(fold_folder.glob("checkpoint_*.pth")):
        before, now = read_json(record, TransferFile)["checkpoint"], start.block["checkpoint"]
        if before != now:
            raise UserError(f"{fold_folder} holds a training that started from {before}, and this one would start from "
                            f"{now} and replace it; move that folder away, or train under plans of another name "
                            f"(nnssl_transfer makes them)")  # fmt: skip
    plans, others = model_folder / "plans.json", model_folder.glob("fold_*/checkpoint_*.pth")
    if plans.is_file() and any(file.parent != fold_folder for file in others):
        network = read_json(plans, PlansFile).get("nnssl", {}).get("network")
        if network is not None and network != start.block["network"]:
            raise UserError(f"the other folds in {model_folder} were trained with another network or other intensities "
                            f"({network}), and all folds predict with one; start this fold from the same kind of "
                            f"pretraining, or move the folder away")  # fmt: skip


def loaded_parts(network: Any, report: TransferReport, configuration: dict[str, Any]) -> str:
    """How much of encoder and decoder, or of backbone and head, took pretrained values, as a line of the log."""
    pretrained = network.pretrained_tensors()
    taken = {id(pretrained[name]) for name in (*report.loaded, *report.adapted)}
    parts = {part: {id(p) for p in parameters_of(part, network, configuration)} for part in (ENCODER, DECODER)}
    counts = [
        f"{len(ids & taken)} of {len(ids)} tensors of the {part_in_words(part, network)}" for part, ids in parts.items()
    ]
    return f"Pretrained: {', '.join(counts)}"


def write_record(
    start: Start, report: TransferReport | None, fold_folder: Path, frozen: dict[str, Any] | None = None
) -> None:
    """Keep beside the training what it started from, and what is frozen (`FrozenParts.frozen_record`), as JSON."""
    loaded = None if report is None else asdict(report)
    content = {**start.block, "warnings": start.warnings, "report": loaded, **(frozen or {})}
    write_json(fold_folder / RECORD, content)

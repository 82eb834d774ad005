"""Parts of the network that a training leaves as they are, for a while or for good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.core.errors import UserError
from nnssl.core.names import shown
from nnssl.finetuning.frozen_parts import BODY, DECODER, ENCODER, parameters_of, part_in_words
from nnssl.finetuning.segmentation import PyramidSegmentation
from nnssl.finetuning.settings import by_plans, given, how_to_set

_PART = re.compile(rf"{ENCODER}|{DECODER}|{BODY}|stages:[1-9][0-9]?")
_STEPS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Freezing:
    """What is frozen, and for how long.

    Args:
        parts: `encoder`, `decoder`, `stages:N` (the first N stages of the encoder) and `body` (all but the head).
        steps: Of the training; 0 for all of them.
    """

    parts: tuple[str, ...]
    steps: int = 0

    def covers(self, step: int) -> bool:
        """Whether the step, counted from 0, leaves these parts as they are."""
        return self.steps == 0 or step < self.steps

    def __str__(self) -> str:
        return f"{', '.join(self.parts)} for {f'{self.steps:,} steps' if self.steps else 'the whole training'}"


def asked_freezing(block: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Freezing | None:
    """What `nnssl_freeze` and `nnssl_freeze_steps` say, else `plans["nnssl"]`; None if nothing is to be frozen.

    Args:
        block: `plans["nnssl"]`.
        environment: Of the variables; None for this process's.

    Raises:
        UserError: There is no such part, or the steps are no whole number, or stand alone.
    """
    known = {} if environment is None else {"environment": environment}
    parts, steps = (given(name, block, **known) for name in ("freeze", "freeze_steps"))
    for_parts, for_steps = (by_plans(name, block, **known) for name in ("freeze", "freeze_steps"))
    if parts is None:
        if steps is None:
            return None
        raise UserError(f"nnssl_freeze_steps needs to know what is frozen; {how_to_set(for_steps, freeze=[ENCODER])}")
    words = tuple(re.findall(r"[^\s,'\"\[\]]+", parts))  # a list in the plans comes as its text
    for word in words or ("",):
        if not _PART.fullmatch(word):
            raise UserError(f"nnssl_freeze takes encoder, decoder, stages:N (the first N stages of the encoder) or "
                            f"body (all but the head), not {shown(word)}; "
                            f"{how_to_set(for_parts, freeze=[ENCODER])}")  # fmt: skip
    if steps is not None and not _STEPS.fullmatch(steps):
        raise UserError(f"nnssl_freeze_steps takes a whole number, 0 for the whole training, not {shown(steps)}; "
                        f"{how_to_set(for_steps, freeze_steps=1000)}")  # fmt: skip
    return Freezing(words, int(steps or 0))


class FrozenParts(nnUNetTrainer):
    """nnU-Net's trainer; what `nnssl_freeze` names is not trained in the first `nnssl_freeze_steps` steps.

    Normalisation layers of a frozen part stay in evaluation mode: batch norm uses and keeps its stored statistics.
    Instance norm has none, it measures each patch as before; its scale and shift are frozen with the rest. A part that
    trains later has its place in the optimiser from the start, and no state there until then. The plans of the
    checkpoint keep what is frozen, and a continued training goes on with that, at its step.
    """

    always_frozen: ClassVar[Freezing | None] = None  # by the recipe; nothing else can be frozen then
    freezes_itself: ClassVar[bool] = False  # the recipe has a schedule of its own
    freezing: Freezing | None = None
    network: Any
    num_iterations_per_epoch: int
    _asked: Freezing | None = None
    _asked_by_plans = False  # whether the plans asked, not a variable
    _frozen: tuple[str, ...] = ()  # names of the parameters that are held
    _iteration = 0

    @property
    def step(self) -> int:
        """Steps of the training so far."""
        return int(self.current_epoch) * self.num_iterations_per_epoch + self._iteration

    @property
    def plain_network(self) -> Any:
        """The network without what DistributedDataParallel and torch.compile wrap around it."""
        module: Any = self.network
        if isinstance(module, DistributedDataParallel):
            module = module.module
        return getattr(module, "_orig_mod", module)

    def set_freezing(self, block: Mapping[str, Any]) -> None:
        """Take the recipe's freezing, or what the user asks for.

        Raises:
            UserError: As of `asked_freezing`, or the recipe freezes a part itself.
        """
        self._asked, self._asked_by_plans = asked_freezing(block), by_plans("freeze", block)
        if self._asked is not None and (self.freezes_itself or self.always_frozen is not None):
            raise UserError(f"{type(self).__name__} freezes the pretrained part as its recipe has it; "
                            f"{how_to_set(self._asked_by_plans, freeze=None)}, or train "
                            f"nnUNetTrainer_SSLUNetFinetune")  # fmt: skip
        self.freezing = self.always_frozen or self._asked

    def initialize(self) -> None:
        """As nnU-Net's; what is frozen is kept in the plans, and so in every checkpoint."""
        if self._asked is not None:
            block = self.plans_manager.plans.setdefault("nnssl", {})
            block.update(freeze=list(self._asked.parts), freeze_steps=self._asked.steps)
        super().initialize()

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters with a gradient, for the optimiser; then those of the frozen parts lose theirs.

        This is before DistributedDataParallel looks at what trains.
        """
        found = [p for p in self.plain_network.parameters() if p.requires_grad]
        for parameter in self.idle_parameters():  # before what is frozen is noted, to be trained later
            parameter.requires_grad_(False)
        self.hold_frozen()
        return found

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that the loss does not depend on, which DistributedDataParallel must not wait for."""
        return ()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's."""
        made: tuple[torch.optim.Optimizer, Any] = super().configure_optimizers()
        self.hold_frozen()
        return made

    def hold_frozen(self) -> None:
        """Freeze or train the parts, as the step has it, and say so where that changes."""
        covered = self.freezing is not None and self.freezing.covers(self.step)
        if covered == bool(self._frozen) or self.network is None:
            return
        before = self._trained_values()
        if covered:
            self._freeze()
        else:
            self._unfreeze_parts()
        after = self._trained_values()
        if isinstance(self.network, DistributedDataParallel):  # it only synchronises what trained when it was made
            module, self.network = self.network.module, None
            self.network = DistributedDataParallel(module, device_ids=[self.local_rank])
        until = "" if covered else f"Step {self.step:,}: nothing is frozen any more; "
        self.print_to_log_file(f"{until}{self._said(before, after)}")

    def on_train_epoch_start(self) -> None:
        """As nnU-Net's; the frozen part stays in evaluation mode."""
        super().on_train_epoch_start()
        self._iteration = 0
        self.hold_frozen()
        self._hold_statistics()

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step, with what is frozen at that step."""
        self.hold_frozen()
        result: dict = super().train_step(batch)
        self._iteration += 1
        return result

    def go_on_frozen(self, block: Mapping[str, Any]) -> None:
        """Go on with what is frozen in a checkpoint, at its step.

        Args:
            block: `plans["nnssl"]` of the checkpoint.

        Raises:
            UserError: Something else is asked for.
        """
        began = asked_freezing(block, {})
        if self._asked is not None and self._asked != began:
            parts, steps = (None, None) if began is None else (list(began.parts), began.steps)
            raise UserError(f"the training in {self.output_folder} began with {began or 'nothing'} frozen, not "
                            f"{self._asked}; {how_to_set(self._asked_by_plans, freeze=parts, freeze_steps=steps)}"
                            )  # fmt: skip
        if self.always_frozen is None:
            self.freezing = began
        self.hold_frozen()

    def frozen_record(self) -> dict[str, Any]:
        """What is frozen, for a report; nothing where all is trained from the first step."""
        if self._asked is None:
            return {}
        return {"frozen": {"parts": list(self._asked.parts), "steps": self._asked.steps,
                           "tensors": len(self._frozen), "trained_values": self._trained_values()}}  # fmt: skip

    def _freeze(self) -> None:
        assert self.freezing is not None
        module = self.plain_network
        configuration = self.configuration_manager.configuration
        named = [p for part in self.freezing.parts for p in parameters_of(part, module, configuration)]
        chosen = {id(p) for p in named}
        held = {name: p for name, p in module.named_parameters() if id(p) in chosen and p.requires_grad}
        self._frozen = tuple(held)
        if isinstance(module, PyramidSegmentation) and {ENCODER, BODY}.intersection(self.freezing.parts):
            module.freeze()
        for parameter in held.values():
            parameter.requires_grad_(False)
        self._hold_statistics()
        if not self._trained_values():
            raise UserError(f"nnssl_freeze={','.join(self.freezing.parts)} leaves nothing to train; freeze less, and "
                            f"{how_to_set(self._asked_by_plans, freeze=[ENCODER])}")  # fmt: skip

    def _unfreeze_parts(self) -> None:
        module, held, self._frozen = self.plain_network, self._frozen, ()
        if isinstance(module, PyramidSegmentation) and module.frozen:
            module.unfreeze()
        for name in held:
            module.get_parameter(name).requires_grad_(True)
        module.train(module.training)  # also the layers whose statistics were held

    def _hold_statistics(self) -> None:
        held = {id(self.plain_network.get_parameter(name)) for name in self._frozen}
        for module in self.plain_network.modules() if held else ():
            own = [id(p) for p in module.parameters(recurse=False)]
            if own and held.issuperset(own):
                module.train(False)

    def _trained_values(self) -> int:
        return sum(p.numel() for p in self.plain_network.parameters() if p.requires_grad)

    def _said(self, before: int, after: int) -> str:
        if self.freezing is None or not self._frozen:
            return f"{after:,} values train, {before:,} before"
        parts, frozen = ", ".join(part_in_words(p, self.plain_network) for p in self.freezing.parts), before - after
        if self.freezing.steps == 0:
            return f"Frozen: {parts}, {frozen:,} values, for the whole training; {after:,} values train"
        total = self.num_epochs * self.num_iterations_per_epoch
        return (f"Frozen: {parts}, {frozen:,} values, for the first {self.freezing.steps:,} of {total:,} steps; "
                f"{after:,} values train until then, {before:,} after that")  # fmt: skip

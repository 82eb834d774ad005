"""nnU-Net's split without the cases that must not be trained on."""

from __future__ import annotations

from pathlib import Path

from nnssl.data.inventory import named
from nnssl.data.records import labels_digest
from nnssl.data.settings import settings_digest
from nnssl.data.unused import unused_cases
from nnssl.errors import UserError
from nnssl.finetuning.checked_trainer import CheckedTrainer


class UsableCases(CheckedTrainer):
    """Leaves out cases that were taken out of the raw dataset, and volumes made with other plans, and says so."""

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

    def _say(self, warning: str) -> None:
        """Once: nnU-Net splits several times."""
        if warning not in self._told:
            self._told = (*self._told, warning)
            self.print_to_log_file(warning)

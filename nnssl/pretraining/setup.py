"""A resolved run: method, sizes, plans, training and held-out volumes, folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnssl.checkpoints.files import FINAL, package_versions
from nnssl.core.errors import UserError
from nnssl.data.guard import Images, names_of_channels
from nnssl.data.loader import Aligner, Cases, RelativePosition
from nnssl.methods.base import Method, MethodConfig
from nnssl.methods.options import to_plain
from nnssl.methods.registry import get_method
from nnssl.networks.build import backbone_of
from nnssl.networks.recompute import recompute_activations
from nnssl.pretraining.folder import Claim, Stored
from nnssl.pretraining.probe_data import ProbeData


@dataclass(frozen=True)
class Setup:
    """A resolved run; plain and picklable, so that it can be handed to other processes.

    Args:
        method: name of the method.
        config: its hyper-parameters, with batch and patch size resolved.
        plans, dataset_json, fingerprint: nnU-Net's files of the first dataset.
        configuration: of the plans.
        resolved: that configuration with what it inherits (`nnssl.networks.build.resolve_configuration`).
        fold: "all" or a number.
        train, val: the volumes; `val` may be empty.
        folder: the run's output folder.
        resume: checkpoint to go on from.
        pretrained: checkpoint whose weights to start from.
        orientation: the first dataset's commonest one, such as LPS; None where it is unknown.
        aligner: what finds a point of a volume in another one, for methods that pair volumes.
        probe: the labelled dataset that the features are probed on while the run goes on; None for no probe.
        claim: the right to write to `folder`; None where nobody else could.
    """

    method: str
    config: MethodConfig
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    fingerprint: dict[str, Any]
    configuration: str
    fold: str
    train: Cases
    val: Cases
    folder: Path
    resume: Stored | None = None
    pretrained: Stored | None = None
    orientation: str | None = None
    aligner: Aligner = field(default_factory=RelativePosition)
    probe: ProbeData | None = None
    claim: Claim | None = None
    resolved: dict[str, Any] = field(kw_only=True)

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds the whole run already."""
        return self.resume is not None and self.resume.path == self.folder / FINAL

    @property
    def method_class(self) -> type[Method]:
        """Class of the method; raises UserError where there is none of that name."""
        return get_method(self.method)

    @property
    def patience(self) -> int | None:
        """Epochs without a lower loss of the held-out volumes after which the run ends; None for the last epoch."""
        return None

    @property
    def flag(self) -> str:
        """Of the command that sets options, for advice."""
        return "-o"

    def build_method(self) -> Method:
        """The method with a freshly initialised backbone."""
        method = self.method_class
        backbone = backbone_of(self.resolved, method.levels)
        method.check(self.config, backbone)
        built = method(backbone, self.config)
        if self.config.checkpoint_activations is not None:
            recompute_activations(built, self.config.checkpoint_activations)
        return built

    @property
    def images(self) -> Images:
        """Channels and commonest orientation of the volumes, to compare with those of another pretraining."""
        name = self.train.folders[0].name
        oriented = {f"most volumes of {name}": self.orientation}
        return Images(name, names_of_channels(self.dataset_json), orientations=oriented)

    def described(self, device: str) -> dict[str, Any]:
        """What `config.json` says of the run, which goes on such a device."""
        return {
            "method": self.method,
            "options": to_plain(self.config),
            "configuration": self.configuration,
            "plans": self.plans["plans_name"],
            "fold": self.fold,
            "datasets": list(dict.fromkeys(f.name for f in self.train.folders)),
            "training_cases": len(self.train),
            "held_out_cases": case_labels(self.val),
            "aligner": self.aligner.identity,
            "probe": self.probe.identity if self.probe else None,
            "pretrained": str(self.pretrained.path) if self.pretrained else None,
            "device": device,
            "seed": self.config.seed,
            "versions": package_versions(),
        }

    def check_claim(self) -> None:
        """Raise UserError where another run has taken the folder."""
        if self.claim is not None:
            self.claim.check()


def resolve_sizes(config: MethodConfig, resolved: dict[str, Any], world_size: int) -> MethodConfig:
    """Fill in the batch and patch size of a resolved configuration where none is given.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    z, y, x = (int(p) for p in (config.patch_size or resolved["patch_size"]))
    batch_size = config.batch_size or int(resolved["batch_size"])
    if batch_size % world_size:
        raise UserError(f"a batch of {batch_size} cannot be divided among {world_size} processes; set "
                        f"-o batch_size={-(-batch_size // world_size) * world_size}")  # fmt: skip
    return replace(config, patch_size=(z, y, x), batch_size=batch_size)


def case_labels(cases: Cases) -> list[str]:
    """Names of the volumes with their datasets."""
    return [cases.label(i) for i in range(len(cases))]

"""What RUN names: a checkpoint, or the folder of a fold or a run; and which run `nnssl_transfer` takes."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnssl.checkpoints.exported import WEIGHTS
from nnssl.checkpoints.files import FINAL, levels_of, load_checkpoint
from nnssl.checkpoints.pretrained import RANDOM, Pretrained, finished_pretrainings, read_pretrained
from nnssl.core.errors import UserError
from nnssl.core.names import why_not_a_name
from nnssl.data.folders import dataset_argument, dataset_name, is_dataset
from nnssl.methods.options import from_plain
from nnssl.methods.registry import get_method, method_names
from nnssl.networks.build import build_backbone


def checkpoint_of(run: str | Path) -> Path:
    """Checkpoint of a finished pretraining, given as the file, its fold's folder, its run's folder, or exported.

    The model folder of a training by nnU-Net, and a fold's folder in it, will do as well.

    Raises:
        UserError: there is none, or the run has several folds.
    """
    path = Path(run)
    if path.is_dir():
        files = [folder / FINAL for folder in (path, *sorted(path.glob("fold_*")))]
        found = [file for file in (*files, path / WEIGHTS) if file.is_file()]
        if len(found) == 1:
            return found[0]
        listed = f"{len(found)} finished runs ({', '.join(map(str, found))})" if found else "no finished run"
        raise UserError(f"{path} holds {listed}; give the one folder that holds {FINAL}, or a checkpoint")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the folder of a finished run, or its {FINAL}")
    return path


@dataclass(frozen=True)
class Run:
    """An opened RUN.

    Args:
        checkpoint: its file.
        content: of that file (`nnssl.checkpoints.files.load_checkpoint`).
        is_random: whether random weights have taken the place of its own.
    """

    checkpoint: Path
    content: dict[str, Any]
    is_random: bool = False

    @property
    def title(self) -> str:
        """Its method, for pictures; says so where the weights are random."""
        return f"{self.content['method']} with random weights" if self.is_random else str(self.content["method"])


def open_run(run: str | Path) -> Run:
    """Open what `-m RUN` names.

    Args:
        run: see `checkpoint_of`; or `random:RUN` for the network, plans and preprocessing of that run with the random
            weights that it began with, by its own seed.

    Raises:
        UserError: there is no such checkpoint, or it is damaged; or `random` does not say whose network it means.
    """
    kind, _, named = str(run).partition(":")
    if kind != RANDOM:
        path = checkpoint_of(run)
        return Run(path, load_checkpoint(path))
    if not named:
        raise UserError(f"{run} does not say which network gets random weights; type {RANDOM}:RUN with the RUN to "
                        f"compare with")  # fmt: skip
    path = checkpoint_of(named)
    return Run(path, _before_the_first_step(load_checkpoint(path)), is_random=True)


def _before_the_first_step(content: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the weights that the run's seed gave before anything was loaded or learned."""
    method = get_method(content["method"])
    config = from_plain(method.config_class, content["config"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        built = method(build_backbone(content["plans"], content["configuration"], levels_of(content)), config)
    return {**content, "method_state": built.state_dict(), "epoch": 0}


@dataclass(frozen=True)
class RunFilter:
    """Conditions on a pretraining; None for any.

    Args:
        method: of the pretraining; `random` for the baseline with the network of any pretraining, or `random:METHOD`
            for that of one method.
        plans, configuration, fold: of the pretraining.
    """

    method: str | None = None
    plans: str | None = None
    configuration: str | None = None
    fold: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError where there is no such method."""
        if self.of_method is not None:
            get_method(self.of_method)

    @property
    def is_random(self) -> bool:
        """Whether random weights are asked for."""
        return self.method is not None and self.method.split(":")[0] == RANDOM

    @property
    def of_method(self) -> str | None:
        """Method of the pretraining, also where random weights take its place."""
        if not self.is_random:
            return self.method
        return str(self.method).partition(":")[2] or None

    def fits(self, run: _Finished) -> bool:
        """Whether a run meets the conditions."""
        wanted = (self.of_method, self.plans, self.configuration, self.fold)
        found = (run.method, run.plans, run.configuration, run.fold)
        return all(w in (None, f) for w, f in zip(wanted, found, strict=True))


@dataclass(frozen=True)
class _Finished:
    """A finished run by the name of its folder: nnssl_METHOD__PLANS__CONFIGURATION/fold_FOLD."""

    checkpoint: Path
    method: str
    plans: str
    configuration: str
    fold: str

    def options(self, is_random: bool) -> str:
        """Options with which `nnssl_transfer` takes this run and no other."""
        method = f"{RANDOM}:{self.method}" if is_random else self.method
        return f"-m {method} -p {self.plans} -c {self.configuration} -f {self.fold}"


def is_run(source: int | str | Path) -> bool:
    """Whether the source of a transfer is the path of a RUN, and not the number or the name of a dataset."""
    text = str(source)
    if text.isdecimal() or why_not_a_name(text, "dataset") is None:
        return isinstance(source, Path)
    return os.sep in text or Path(text).exists()


def read_run(run: str | Path, wanted: RunFilter) -> Pretrained:
    """Read the pretraining, or the model of nnU-Net, that a path names; of its filter, only the fold chooses.

    Raises:
        UserError: as `checkpoint_of`; or it is not what is wanted.
    """
    folder = Path(run) / f"fold_{wanted.fold}"
    pretrained = read_pretrained(checkpoint_of(folder if wanted.fold and folder.is_dir() else run))
    found = (pretrained.method, pretrained.plans["plans_name"], pretrained.configuration)
    asked = (wanted.of_method, wanted.plans, wanted.configuration)
    if wrong := [f"{w} ({f})" for w, f in zip(asked, found, strict=True) if w not in (None, f)]:
        raise UserError(f"{pretrained.path} is not that of {', '.join(wrong)}; leave out -m, -p and -c: -s names a run "
                        f"already")  # fmt: skip
    return pretrained


def source_argument(source: Pretrained) -> str:
    """What `-s` of `nnssl_transfer` takes for a pretraining: its dataset, or for a model of nnU-Net its folder."""
    if source.path.parts[-3:-2] and source.path.parts[-3].startswith("nnssl_"):
        return dataset_argument(str(source.plans["dataset_name"]))
    return shlex.quote(str(source.path.parent))


def source_name(source: int | str, results: Path) -> str:
    """Full name of the pretraining's dataset; its results are enough.

    Raises:
        UserError: there is no such dataset, or several have that number.
    """
    names = {file.parts[-4] for file in finished_pretrainings(results)}
    found = [name for name in names if is_dataset(name, source)]
    return found[0] if len(found) == 1 else dataset_name(source)


def choose_pretraining(results: Path, dataset: str, target: int | str, wanted: RunFilter) -> Pretrained:
    """Read the one finished pretraining of `dataset` that is `wanted`.

    For random weights there may be several with the same network and levels.

    Raises:
        UserError: there is none or more than one; the message lists them and what to type.
    """
    runs = [run for run in map(_run, finished_pretrainings(results, dataset=dataset)) if run is not None]
    chosen = [run for run in runs if wanted.fits(run)]
    command = f"nnssl_transfer -s {dataset_argument(dataset)} -t {target}"
    if not chosen and not runs:
        method = wanted.of_method or "|".join(method_names())
        if any(is_dataset(file.parts[-4], target) for file in finished_pretrainings(results)):
            raise UserError(f"there is no finished pretraining of {dataset}, but one of {target}; did you mean "
                            f"nnssl_transfer -s {target} -t {dataset_argument(dataset)}?")  # fmt: skip
        raise UserError(f"there is no finished pretraining of {dataset} in {results}; run "
                        f"nnssl_pretrain -d {dataset_argument(dataset)} -m {method} first")  # fmt: skip
    if not chosen:
        raise UserError(f"no finished pretraining of {dataset} fits -m, -p, -c and -f; type one of:"
                        + _lines(command, runs, wanted))  # fmt: skip
    if not wanted.is_random and len(chosen) > 1:
        raise UserError(f"{dataset} has {len(chosen)} finished pretrainings; type one of:"
                        + _lines(command, chosen, wanted))  # fmt: skip
    first, *others = (read_pretrained(run.checkpoint) for run in chosen)
    if any(_network(first) != _network(other) for other in others):
        raise UserError(f"the pretrainings of {dataset} differ in plans or levels, and so do their random networks; "
                        f"type one of:" + _lines(command, chosen, wanted))  # fmt: skip
    return first


def _run(checkpoint: Path) -> _Finished | None:
    """The run of a checkpoint; None if the user has renamed its folder."""
    parts = checkpoint.parts[-3].removeprefix("nnssl_").split("__")
    fold = checkpoint.parts[-2].removeprefix("fold_")
    return _Finished(checkpoint, parts[0], parts[1], parts[2], fold) if len(parts) == 3 else None


def _lines(command: str, runs: list[_Finished], wanted: RunFilter) -> str:
    return "".join(f"\n  {command} {run.options(wanted.is_random)}" for run in runs)


def _network(pretrained: Pretrained) -> tuple[object, ...]:
    return pretrained.plans, pretrained.configuration, pretrained.levels

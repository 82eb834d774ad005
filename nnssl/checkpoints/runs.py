"""How a RUN is named: a checkpoint, its fold's folder or its run's; and which one `nnssl_transfer` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnssl.checkpoints.files import FINAL
from nnssl.checkpoints.pretrained import RANDOM, Pretrained, finished_pretrainings, read_pretrained
from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_argument, dataset_name, is_dataset
from nnssl.methods.registry import get_method, method_names


def checkpoint_of(run: str | Path) -> Path:
    """Checkpoint of a finished pretraining that is named by itself, by its fold's folder or by its run's folder.

    Raises:
        UserError: there is none, or the run has several folds.
    """
    path = Path(run)
    if path.is_dir():
        found = [folder / FINAL for folder in (path, *sorted(path.glob("fold_*"))) if (folder / FINAL).is_file()]
        if len(found) == 1:
            return found[0]
        listed = f"{len(found)} finished runs ({', '.join(map(str, found))})" if found else "no finished run"
        raise UserError(f"{path} holds {listed}; give the one folder that holds {FINAL}, or a checkpoint")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give the folder of a finished run, or its {FINAL}")
    return path


@dataclass(frozen=True)
class RunFilter:
    """What a pretraining has to be; None for any.

    Args:
        method: of the pretraining; `random` for the baseline, whose network is that of any pretraining, or
            `random:METHOD` for that of one method's.
        plans, configuration, fold: it was made with.
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
        """Whether the weights shall be random."""
        return self.method is not None and self.method.split(":")[0] == RANDOM

    @property
    def of_method(self) -> str | None:
        """Method of the pretraining, also of the one that random weights take the place of."""
        if not self.is_random:
            return self.method
        return str(self.method).partition(":")[2] or None

    def fits(self, run: _Run) -> bool:
        """Whether a run is what is asked for."""
        wanted = (self.of_method, self.plans, self.configuration, self.fold)
        found = (run.method, run.plans, run.configuration, run.fold)
        return all(w in (None, f) for w, f in zip(wanted, found, strict=True))


@dataclass(frozen=True)
class _Run:
    """A finished run, by what its folder is called: nnssl_METHOD__PLANS__CONFIGURATION/fold_FOLD."""

    checkpoint: Path
    method: str
    plans: str
    configuration: str
    fold: str

    def options(self, is_random: bool) -> str:
        """What `nnssl_transfer` takes for this run and no other."""
        method = f"{RANDOM}:{self.method}" if is_random else self.method
        return f"-m {method} -p {self.plans} -c {self.configuration} -f {self.fold}"


def source_name(source: int | str, results: Path) -> str:
    """Full name of the pretraining's dataset, of which only the results have to be left.

    Raises:
        UserError: there is no such dataset, or several have that number.
    """
    names = {file.parts[-4] for file in finished_pretrainings(results)}
    found = [name for name in names if is_dataset(name, source)]
    return found[0] if len(found) == 1 else dataset_name(source)


def choose_pretraining(results: Path, dataset: str, target: int | str, wanted: RunFilter) -> Pretrained:
    """Read the one finished pretraining of `dataset` that is `wanted`.

    For random weights several will do, as long as network and levels are the same.

    Raises:
        UserError: there is none or more than one; the message lists what there is and what to type.
    """
    runs = [run for run in map(_run, finished_pretrainings(results, dataset=dataset)) if run is not None]
    chosen = [run for run in runs if wanted.fits(run)]
    command = f"nnssl_transfer -s {dataset_argument(dataset)} -t {target}"
    if not chosen and not runs:
        method = wanted.of_method or "|".join(method_names())
        raise UserError(f"there is no finished pretraining of {dataset} in {results}; run "
                        f"nnssl_pretrain -d {dataset_argument(dataset)} -m {method} first")  # fmt: skip
    if not chosen:
        raise UserError(f"no finished pretraining of {dataset} is what -m, -p, -c and -f ask for; type one of:"
                        + _lines(command, runs, wanted))  # fmt: skip
    if not wanted.is_random and len(chosen) > 1:
        raise UserError(f"{dataset} has {len(chosen)} finished pretrainings; type one of:"
                        + _lines(command, chosen, wanted))  # fmt: skip
    first, *others = (read_pretrained(run.checkpoint) for run in chosen)
    if any(_network(first) != _network(other) for other in others):
        raise UserError(f"the pretrainings of {dataset} differ in plans or levels, so that there are several random "
                        f"networks to compare with; type one of:" + _lines(command, chosen, wanted))  # fmt: skip
    return first


def _run(checkpoint: Path) -> _Run | None:
    """The run of a checkpoint; None where its folder has a name of the user's."""
    parts = checkpoint.parts[-3].removeprefix("nnssl_").split("__")
    fold = checkpoint.parts[-2].removeprefix("fold_")
    return _Run(checkpoint, parts[0], parts[1], parts[2], fold) if len(parts) == 3 else None


def _lines(command: str, runs: list[_Run], wanted: RunFilter) -> str:
    return "".join(f"\n  {command} {run.options(wanted.is_random)}" for run in runs)


def _network(pretrained: Pretrained) -> tuple[object, ...]:
    return pretrained.plans, pretrained.configuration, pretrained.levels

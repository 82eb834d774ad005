"""The benchmark's own nnUNet_preprocessed: links to the user's, and a splits_final.json with one fold per subset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnssl.benchmarking.methods import Method
from nnssl.benchmarking.subsets import Fold, HeldOut, choose_test_set, preprocess_test_cases
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import BenchmarkFile
from nnssl.core.schemas import ONLINE, SplitsFile
from nnssl.data.planning import load_plans
from nnssl.data.raw import read_dataset_json
from nnssl.data.records import unused_cases
from nnssl.data.storage import body_folder
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.networks.build import any_configuration

RECORD = "splits.json"
_SPLITS = "splits_final.json"
_TRUTH = "gt_segmentations"


@dataclass(frozen=True)
class Workspace:
    """The data that all parts of the benchmark share.

    Args:
        home: the benchmark's folder.
        source: the user's folder of the preprocessed dataset.
        dataset_json: of the dataset.
        plans: by name.
        configuration: of the plans.
        test: the test set.
        folds: all subsets so far, ordered by number.
        record: content of `splits.json`: decisions of earlier calls, and the choice of the test set.
    """

    home: Path
    source: Path
    dataset_json: dict[str, Any]
    plans: dict[str, dict[str, Any]]
    configuration: str
    test: HeldOut
    folds: list[Fold]
    record: dict[str, Any]

    @property
    def ending(self) -> str:
        """Of label files."""
        return str(self.dataset_json["file_ending"])

    @property
    def preprocessed(self) -> Path:
        """nnUNet_preprocessed of the trainings."""
        return self.home / "nnUNet_preprocessed"

    @property
    def truth(self) -> Path:
        """Label files of training and test cases."""
        return self.preprocessed / self.source.name / _TRUTH


def open_workspace(
    home: Path, source: Path, configuration: str, plans: dict[str, dict[str, Any]], raw: Path | None, choice: str | None
) -> Workspace:
    """Open the workspace with its folds so far; write nothing.

    Args:
        home: the benchmark's folder.
        source: the user's folder of the preprocessed dataset.
        configuration: of the plans.
        plans: from `read_plans`.
        raw: the dataset's folder in nnUNet_raw, if that is set.
        choice: see `choose_test_set`; None keeps the test set of an existing benchmark.

    Raises:
        UserError: the folder has a benchmark of other data; see `labelled_cases` and `choose_test_set`.
    """
    dataset_json, file = read_dataset_json(source), home / RECORD
    if not file.is_file() and (home / "nnUNet_preprocessed").exists():  # it may be the user's own
        raise UserError(
            f"{home} has a folder nnUNet_preprocessed that no benchmark made; choose another folder with -o"
        )
    record = read_json(file, BenchmarkFile, "choose another folder with -o") if file.is_file() else {}
    splits_file = source / _SPLITS
    splits = read_json(splits_file, SplitsFile) if splits_file.is_file() else None
    ending = dataset_json["file_ending"]
    labelled = labelled_cases(source, {_identifier(of_name, configuration) for of_name in plans.values()}, ending)
    test = choose_test_set(choice or record.get("choice"), labelled, splits, raw, ending)
    now = {"dataset": source.name, "configuration": configuration, "test": test.cases, "training": test.training}
    if odd := [key for key in now if record and record[key] != now[key]]:
        raise UserError(f"{home} has a benchmark with another {odd[0]} ({file}); choose another folder with -o")
    folds = [Fold(f["fold"], f["cases"], f["seed"], tuple(f["train"])) for f in record.get("folds", [])]
    return Workspace(home, source, dataset_json, plans, configuration, test, folds, {"choice": choice, **record, **now})


def read_plans(source: Path, names: Iterable[str], configuration: str) -> dict[str, dict[str, Any]]:
    """Plans of a preprocessed dataset by name.

    Raises:
        UserError: a file or the configuration is missing, or the plans name a class that is not trusted.
    """
    found = {}
    for name in names:
        plans = load_plans(source, name)
        if plans is None:
            raise UserError(f"there are no plans {name} in {source}; plan and preprocess the dataset first, or name "
                            f"other plans with -p")  # fmt: skip
        if configuration not in plans["configurations"]:
            raise UserError(f"{source / name}.json has no configuration {configuration}; take one of "
                            f"{', '.join(plans['configurations'])} with -c")  # fmt: skip
        refuse_untrusted_names(plans, any_configuration(plans, configuration), source / f"{name}.json")
        found[name] = plans
    return found


def labelled_cases(source: Path, data: Iterable[str], ending: str) -> list[str]:
    """Cases that are preprocessed for all plans and have a label.

    Args:
        source: folder of the preprocessed dataset.
        data: names of its folders of preprocessed cases.
        ending: of label files.

    Raises:
        UserError: the dataset is not preprocessed for one of the plans, or no case has a label.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    names = {f.name[: -len(ending)] for f in (source / _TRUTH).glob(f"*{ending}")}
    for folder in (source / name for name in sorted(data)):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; preprocess these plans and their configuration first "
                            f"(nnssl_plan_and_preprocess, or nnUNetv2_preprocess)")  # fmt: skip
        names &= set(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
        names -= unused_cases(folder).keys()
    if len(names) < 2:
        raise UserError(f"{source} has {len(names)} preprocessed cases with labels and the benchmark needs at least 2; "
                        f"add some, and preprocess them")  # fmt: skip
    return sorted(names)


def write_workspace(workspace: Workspace, methods: Sequence[Method]) -> None:
    """Make the folder that the trainings read; existing files stay.

    Raises:
        UserError: a method of the same name was started with other settings.
    """
    record, configuration = workspace.record, workspace.configuration
    known = record.get("methods", {})
    for method in methods:
        _refuse_other_settings(method, known.get(method.name), workspace.home)
    folds = [{"fold": f.number, **{k: v for k, v in asdict(f).items() if k != "number"}} for f in workspace.folds]
    content = {**record, "folds": folds, "methods": known | {m.name: m.record() for m in methods}}
    if content != record:
        write_json(workspace.home / RECORD, content)
    folder = workspace.preprocessed / workspace.source.name
    folder.mkdir(parents=True, exist_ok=True)
    data = {name: _identifier(plans, configuration) for name, plans in workspace.plans.items()}
    _link_dataset(folder, workspace, set(data.values()))
    online = {ONLINE: list(workspace.test.validation)} if workspace.test.validation else {}
    splits = [{"train": list(f.train), "val": workspace.test.cases, **online} for f in workspace.folds]
    write_json(folder / _SPLITS, splits)
    for name, plans in workspace.plans.items():
        preprocess_test_cases(workspace.test, folder / data[name], plans, configuration, workspace.dataset_json)
        # without the checkpoint: its path is relative to another nnUNet_results, and the environment has the full one
        block = {key: value for key, value in plans.get("nnssl", {}).items() if key != "checkpoint"}
        write_json(folder / f"{name}.json", {**plans, "nnssl": block} if "nnssl" in plans else plans)


def _refuse_other_settings(method: Method, before: dict[str, Any] | None, home: Path) -> None:
    """Make sure that trainings in one row of the tables differ in nothing but subset and seed."""
    if before is None or before == method.record():
        return
    pairs = [(f.pop("variables"), f) for f in (dict(before), method.record())]
    then, now = ({**fields, **variables} for variables, fields in pairs)
    changed = ", ".join(
        f"{key} (was {then.get(key, 'not set')}, is {now.get(key, 'not set')})"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    )
    raise UserError(f"{home} has trainings of {method.name} with other settings: {changed}; set them as they were, "
                    f"give the method another name (NAME=TRAINER), or choose another folder with -o")  # fmt: skip


def _link_dataset(folder: Path, workspace: Workspace, data: set[str]) -> None:
    """Link the whole dataset; folders that the test set adds cases to become folders of links."""
    test = workspace.test
    plans = {f"{name}.json" for name in workspace.plans}  # written without their checkpoint
    own = {_TRUTH, *data, *(body_folder(Path(name)).name for name in data)} if test.raw else set()
    for entry in workspace.source.iterdir():
        target = folder / entry.name
        if entry.name == _SPLITS or entry.name in plans or entry.name.startswith("."):
            continue
        if entry.name not in own:
            _link(target, entry)
            continue
        if target.is_symlink():  # it leads to the user's folder, which must not change
            target.unlink()
        target.mkdir(exist_ok=True)
        for file in entry.iterdir():
            _link(target / file.name, file)
    for _, label in test.raw.values():
        _link(folder / _TRUTH / Path(label).name, Path(label))


def _link(target: Path, source: Path) -> None:
    if target.is_symlink() and not target.exists():  # the dataset has been moved
        target.unlink()
    with contextlib.suppress(FileExistsError):
        os.symlink(source.resolve(), target)


def _identifier(plans: dict[str, Any], configuration: str) -> str:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return str(PlansManager(plans).get_configuration(configuration).data_identifier)

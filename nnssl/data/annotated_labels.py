"""`annotated_labels` of dataset.json: which labels somebody has annotated in a case, whether or not they occur there.

    "annotated_labels": {"case_1": ["liver", "kidney"], "case_2": []}

Names are those of `labels`, without background and ignore. A case that is not listed has all labels annotated, an empty
list is a case without annotation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.schemas import DatasetFile
from nnssl.data.inventory import named
from nnssl.data.raw import read_dataset_json, read_raw_dataset

KEY = "annotated_labels"
_OUTSIDE = ("background", "ignore")  # need no annotation of their own


@dataclass(frozen=True)
class AnnotatedLabels:
    """What is annotated in the cases of a dataset.

    Args:
        labels: values of the label map by name, without background and ignore; several values are a region.
        listed: names of what is annotated, by case; other cases have everything annotated.
    """

    labels: dict[str, frozenset[int]]
    listed: dict[str, frozenset[str]]

    def of(self, case: str) -> frozenset[str]:
        """Names of the labels that are annotated in a case."""
        return self.listed.get(case, frozenset(self.labels))

    def values(self, case: str) -> frozenset[int]:
        """Values that may occur in the label map of a case, without background and ignore."""
        return frozenset().union(*(self.labels[name] for name in self.of(case)))

    def heads(self, case: str, heads: Sequence[Any]) -> list[bool]:
        """Whether each of nnU-Net's foreground labels or regions (a number or several) is annotated in a case."""
        annotated = {self.labels[name] for name in self.of(case)}
        return [_values(head) in annotated for head in heads]

    def partial(self) -> dict[str, frozenset[str]]:
        """The listed cases in which some label is not annotated."""
        return {case: names for case, names in self.listed.items() if len(names) < len(self.labels)}


def read_annotated_labels(dataset_json: Mapping[str, Any], file: Path) -> AnnotatedLabels:
    """Read the key of a dataset.json; without it nothing is listed.

    Args:
        dataset_json: its content.
        file: its path, for messages.

    Raises:
        UserError: the key holds anything but lists of label names.
    """
    labels = {name: _values(value) for name, value in dataset_json["labels"].items() if name not in _OUTSIDE}
    given = dataset_json.get(KEY, {})
    if not isinstance(given, dict):
        raise UserError(
            f'{file}: "{KEY}" must be an object with a list of labels for each case, as in {_example(labels)}'
        )
    wrong = [case for case, names in given.items() if not _is_list_of_names(names)]
    if wrong:
        raise UserError(
            f'{file}: under "{KEY}", {named(wrong)} must have a list of label names, as in {_example(labels)}'
        )
    unknown: dict[str, list[str]] = {}
    for case, names in given.items():
        for name in names:
            if name not in labels:
                unknown.setdefault(name, []).append(case)
    if unknown:
        found = ", ".join(f"{name} (in {named(cases)})" for name, cases in unknown.items())
        raise UserError(f'{file}: "{KEY}" names what is no label: {found}; the labels are '
                        f"{', '.join(labels) or 'none'} (background and ignore are not listed)")  # fmt: skip
    return AnnotatedLabels(labels, {case: frozenset(names) for case, names in given.items()})


def refuse_unknown_cases(annotations: AnnotatedLabels, known: Collection[str], file: Path) -> None:
    """Raise UserError where a listed case does not exist: the case that was meant would count as complete."""
    unknown = [case for case in annotations.listed if case not in known]
    if unknown:
        raise UserError(f'{file}: "{KEY}" lists cases that do not exist: {named(unknown)}; mend the names or remove '
                        f"the entries (cases are named like {next(iter(sorted(known)), 'nothing here')})")  # fmt: skip


def annotated_labels_of_training(
    dataset_json: Mapping[str, Any], name: str, preprocessed: Path, cases: Collection[str]
) -> AnnotatedLabels:
    """Read what nnU-Net hands to a trainer, and compare it with the raw dataset if there is one.

    Args:
        dataset_json: content of the file in nnUNet_preprocessed.
        name: of the dataset.
        preprocessed: its folder in nnUNet_preprocessed.
        cases: preprocessed ones.

    Raises:
        UserError: as in `read_annotated_labels`; the raw dataset has another list; or a listed case is neither
            preprocessed nor raw.
    """
    file, raw = preprocessed / "dataset.json", os.environ.get("nnUNet_raw")
    if raw and (Path(raw) / name / "dataset.json").is_file():
        of_raw = read_dataset_json(Path(raw) / name)
        if KEY in of_raw and of_raw[KEY] != dataset_json.get(KEY):
            raise UserError(f'{Path(raw) / name / "dataset.json"} has another "{KEY}" than {file}, which training '
                            f"reads; type: nnssl_annotated_labels check -d {name} --write")  # fmt: skip
        if KEY in of_raw:
            file = Path(raw) / name / "dataset.json"  # where it is edited
    annotations = read_annotated_labels(dataset_json, file)
    if annotations.listed:
        refuse_unknown_cases(annotations, {*cases, *raw_cases(name)}, file)
    return annotations


def raw_cases(name: str) -> set[str]:
    """Names of all cases of a raw dataset, also of those that cannot be used; empty without the dataset."""
    raw = os.environ.get("nnUNet_raw")
    if not raw or not (Path(raw) / name).is_dir():
        return set()
    try:
        dataset = read_raw_dataset(Path(raw), name)
    except UserError:  # training needs no raw dataset
        return set()
    return dataset.cases.keys() | dataset.left_out.keys()


def write_annotated_labels(folders: Iterable[Path], given: Mapping[str, Sequence[str]]) -> list[Path]:
    """Set the key in each folder's dataset.json, where there is one; keep everything else and the order.

    Returns:
        The files.

    Raises:
        UserError: a file may not be written.
    """
    files = [folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()]
    for file in files:
        content = read_json(file, DatasetFile) | {KEY: {case: list(names) for case, names in given.items()}}
        try:
            write_json(file, content)
        except PermissionError as error:
            raise UserError(f"{file} may not be written; change its permissions, or add the lines yourself") from error
    return files


def _values(label: Any) -> frozenset[int]:
    return frozenset(map(int, label)) if isinstance(label, (list, tuple)) else frozenset([int(label)])


def _is_list_of_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _example(labels: Collection[str]) -> str:
    return json.dumps({"case_1": list(labels)[:1]})

"""Which preprocessed cases nobody shall use, for readers that do not need the raw dataset to know it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import WithdrawnFile
from nnssl.data.raw import LABELLED, UNLABELLED
from nnssl.data.records import Records

_WITHDRAWN = "nnssl_withdrawn.json"


def read_withdrawn(home: Path, kind: str = LABELLED) -> set[str]:
    """Cases of a preprocessed dataset whose raw files are gone, while others are there; see `write_withdrawn`."""
    return set(_withdrawn(home).get(kind, ()))


def write_withdrawn(home: Path, cases: Collection[str], kind: str = LABELLED) -> None:
    """Note such cases where readers find them without the raw dataset; nothing is written where nothing changes.

    Args:
        home: the dataset's folder in nnUNet_preprocessed; locked.
        cases: their names.
        kind: `imagesTr` or `imagesUn`, which may hold cases of the same name.
    """
    if set(cases) == read_withdrawn(home, kind):
        return
    content = {key: names for key, names in (_withdrawn(home) | {kind: sorted(cases)}).items() if names}
    if content:
        write_json(home / _WITHDRAWN, content)
    else:
        (home / _WITHDRAWN).unlink(missing_ok=True)


def _withdrawn(home: Path) -> dict[str, list[str]]:
    file = home / _WITHDRAWN
    fix = "delete it and run nnssl_plan_and_preprocess"
    return dict(read_json(file, WithdrawnFile, fix)) if file.is_file() else {}


def unused_cases(folder: Path, settings: str | None = None, labels: str | None = None) -> dict[str, str]:
    """Cases whose volumes in `folder` must not be read, with the reason.

    Args:
        folder: `DatasetXXX/<data_identifier>` in nnUNet_preprocessed.
        settings: digest of the reader's `volume_settings`; None where any will do.
        labels: `labels_digest` of the reader's dataset.json; None where labels do not matter.
    """
    found = {record.case: record.unfit(settings, labels) for record in Records(folder).all()}
    kind = UNLABELLED if folder.name.endswith("_unlabelled") else LABELLED
    gone = dict.fromkeys(read_withdrawn(folder.parent, kind), "its raw files are gone")
    return {case: reason for case, reason in found.items() if reason is not None} | gone

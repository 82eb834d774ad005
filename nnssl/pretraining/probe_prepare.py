"""`-probe`: the labelled dataset with the run's own plans, preprocessed where that is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_name, require_folders
from nnssl.data.guard import Images, check_datasets
from nnssl.data.prepared import PreparedDatasets, prepare_datasets
from nnssl.data.raw import RawDataset, list_dataset
from nnssl.data.volumes import VolumeFolder
from nnssl.pretraining.probe_data import LabelledCases, ProbeData, Values
from nnssl.pretraining.setup import hold_out

HELD_OUT = 0.2  # of the cases, where there is no splits_final.json
MOST_HELD_OUT = 4  # cases whose Dice is computed: a sliding window over all of a large dataset would cost hours


def check_probe(dataset: int | str, first: int | str, every: int | None, allow: bool = False) -> RawDataset:
    """The labelled dataset, if a run on `first` can be probed on it; nothing is preprocessed for the answer.

    Args:
        dataset: number or name of the labelled dataset.
        first: of the run's first dataset.
        every: epochs between evaluations; None for the default.
        allow: whether it may be of another modality.

    Raises:
        UserError: there is no such dataset, it has no labels or other channels (`nnssl.data.guard`), or `every` is
            below 1.
    """
    if every is not None and every < 1:
        raise UserError(f"-probe_every takes a number of epochs from 1 on, not {every}")
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    own, listed = (list_dataset(raw, name, preprocessed / name) for name in map(dataset_name, (first, dataset)))
    if not listed.dataset_json["labels"].keys() - {"background", "ignore"} or not (
        listed.labelled if listed.cases else (preprocessed / listed.name / "gt_segmentations").is_dir()
    ):
        raise UserError(f"{listed.name} has no labels to probe with; put them into {listed.folder / 'labelsTr'} and "
                        f"name them in its dataset.json, or choose a labelled dataset with -probe")  # fmt: skip
    # what it warns of is said when the dataset gets the plans of the run
    check_datasets(Images(own.name, own.channel_names), Images(listed.name, listed.channel_names), allow)
    return listed


def prepare_probe(
    dataset: int | str,
    prepared: PreparedDatasets,
    configuration: str,
    every: int | None,
    num_processes: int | None,
    may_preprocess: bool,
    allow_other_intensities: bool = False,
) -> ProbeData:
    """The labelled dataset of a probe, with the plans, spacing and intensities of the run.

    A dataset of the run is taken as it is. Another one gets the plans of the run's first dataset and its volumes under
    the names that `nnssl_plan_and_preprocess -d FIRST PROBE` and `nnssl_transfer` use too, so that they are made once.
    Its held-out cases are those of fold 0 of its splits_final.json, else a fixed fifth of its cases; the Dice of at
    most four of them is computed.

    Args:
        dataset: number or name.
        prepared: the datasets of the run.
        configuration: of the plans.
        every: epochs between evaluations; None for the default.
        num_processes: for preprocessing, None for the default.
        may_preprocess: False where several processes would do it at once; everything has to be there then.
        allow_other_intensities: whether it may be of another modality than the datasets of the run.

    Raises:
        UserError: fewer than two of its cases are ready, or what `check_probe`, `prepare_datasets` and
            `LabelledCases.check` raise.
    """
    first = prepared.folders[0].name
    listed = check_probe(dataset, first, every, allow_other_intensities)
    labels, ignore = _labels(listed)
    folder = next((f for f in prepared.folders if f.name == listed.name), None)
    if folder is None:
        plans = prepared.plans["plans_name"]
        both = prepare_datasets([first, listed.name], plans, configuration, num_processes, may_preprocess,
                                allow_other_intensities)  # fmt: skip
        folder = next(f for f in both.folders if f.name == listed.name)
    train, held_out = _split(folder)
    data = ProbeData(folder, train, held_out, labels, ignore, every)
    LabelledCases(data).check()
    return data


def _labels(listed: RawDataset) -> tuple[dict[str, Values], int | None]:
    """Foreground labels and the value to ignore."""
    entries = {str(k): v for k, v in listed.dataset_json["labels"].items() if k != "background"}
    ignore = entries.pop("ignore", None)
    try:
        labels = {k: tuple(int(v) for v in (e if isinstance(e, list) else [e])) for k, e in entries.items()}
        return labels, None if ignore is None else int(ignore)
    except (TypeError, ValueError):
        raise UserError(f"the labels of {listed.name} have to be numbers or lists of numbers; mend its "
                        f"dataset.json") from None  # fmt: skip


def _split(folder: VolumeFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and held-out cases."""
    cases = folder.cases()
    if len(cases) < 2:
        raise UserError(f"{folder.name} has {len(cases)} preprocessed cases in {folder.images}, and a probe needs two: "
                        f"one to learn from and one to measure on")  # fmt: skip
    shuffled = sorted(cases, key=lambda case: hashlib.blake2b(f"{folder.name}/{case}".encode()).digest())
    if (folder.images.parent / "splits_final.json").is_file():
        first, second = hold_out([folder], "0", 0)
        train, held = {str(c) for c in first.names}, {str(c) for c in second.names}
        if not held:
            raise UserError(f"none of the held-out cases of fold 0 in {folder.images.parent / 'splits_final.json'} is "
                            f"preprocessed; delete the file, nnUNetv2_train writes it anew")  # fmt: skip
    else:
        held = set(shuffled[: max(1, round(HELD_OUT * len(cases)))])
        train = set(cases) - held
    return _sorted(train), _sorted([case for case in shuffled if case in held][:MOST_HELD_OUT])


def _sorted(cases: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(cases))

"""A raw dataset in nnU-Net's format whose labels are optional. Listing it opens no image."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnssl.errors import UserError

LABELLED, UNLABELLED = "imagesTr", "imagesUn"  # the second is FLARE's name for the folder
_EXAMPLE = '{"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}'


@dataclass(frozen=True)
class RawCase:
    """Files of one case: an image a channel (or one 4-D image with all channels), and its label if there is one."""

    name: str
    images: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset.

    Args:
        name: such as Dataset500_Thorax.
        folder: where it lies.
        dataset_json: content of its dataset.json.
        cases: by name, sorted.
        left_out: why other cases are not used, by name.
        labelled: whether the cases have labels.
    """

    name: str
    folder: Path
    dataset_json: dict[str, Any]
    cases: dict[str, RawCase]
    left_out: dict[str, str]
    labelled: bool

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels, in order."""
        return list(_channels(self.dataset_json).values())

    @cached_property
    def ct_channel(self) -> int | None:
        """First channel that nnU-Net normalises as CT, by its name."""
        return first_ct_channel(schemes_of(self.dataset_json))

    def without(self, names: Iterable[str]) -> RawDataset:
        """The same dataset with fewer cases."""
        gone = set(names)
        return replace(self, cases={name: case for name, case in self.cases.items() if name not in gone})


def schemes_of(dataset_json: dict[str, Any]) -> list[str]:
    """nnU-Net's name of the normalisation of each channel, which it chooses by the channel's name."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return [get_normalization_scheme(name).__name__ for name in _channels(dataset_json).values()]


def first_ct_channel(normalization_schemes: list[str]) -> int | None:
    """Index of the first channel in Hounsfield units, by nnU-Net's name of its normalisation; None without one."""
    return next((i for i, scheme in enumerate(normalization_schemes) if scheme == "CTNormalization"), None)


def read_raw_dataset(raw: Path, name: str) -> RawDataset:
    """List `raw/name`.

    A dataset is labelled if it has any label; its cases without one are left out then, since a network that is trained
    on the folder would find them without label.

    Raises:
        UserError: dataset.json is missing or wrong, or there are no images of the stated file ending.
    """
    folder = raw / name
    dataset_json = read_dataset_json(folder)
    if "dataset" in dataset_json:
        cases, left_out = _cases_of_dataset_key(folder, dataset_json)
    else:
        cases, left_out = _cases_of_folder(folder, dataset_json["file_ending"], len(_channels(dataset_json)))
    labelled = any(case.label for case in cases.values())
    for case in list(cases.values()):
        if labelled and case.label is None:
            left_out[case.name] = "no label, in a dataset with labels (unlabelled volumes need a dataset of their own)"
        elif case.name.endswith("_seg"):
            left_out[case.name] = "a name that ends in _seg is that of a label for nnU-Net"
        else:
            continue
        del cases[case.name]
    return RawDataset(name, folder, dataset_json, dict(sorted(cases.items())), left_out, labelled)


def list_dataset(raw: Path, name: str, home: Path) -> RawDataset:
    """The raw dataset; without cases where its images were archived and only the preprocessed volumes were kept.

    Args:
        raw: nnUNet_raw.
        name: of the dataset.
        home: its folder in nnUNet_preprocessed.

    Raises:
        UserError: see `read_raw_dataset`; or there is neither.
    """
    folder = raw / name
    file = folder / "dataset.json"
    lists_files = file.is_file() and b'"dataset"' in file.read_bytes()
    archived = not _listing(folder / LABELLED) and not lists_files
    if archived and (not folder.is_dir() or (home / "dataset.json").is_file()):
        return RawDataset(name, folder, read_dataset_json(home), {}, {}, False)
    return read_raw_dataset(raw, name)


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Content of `folder/dataset.json`, checked; `numTraining` may be absent.

    Raises:
        UserError: the file is missing, is no JSON, or lacks a key; or no reader of nnU-Net knows its file ending.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{file} is missing; the least it can say is: {_EXAMPLE}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); the least it can say is: {_EXAMPLE}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object; the least it can say is: {_EXAMPLE}")
    missing = [key for key in ("labels", "file_ending") if key not in content]
    if not isinstance(_channels(content), dict) or not _channels(content):
        missing.insert(0, "channel_names")
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}; the least it can say is: {_EXAMPLE}")
    if "background" not in content["labels"]:
        raise UserError(f'{file} must name the background among its labels: "labels": {{"background": 0}}')
    return content


def _channels(dataset_json: dict[str, Any]) -> dict[str, str]:
    """Channel names; nnU-Net still takes the older key too."""
    return dataset_json.get("channel_names", dataset_json.get("modality"))  # type: ignore[return-value]


def read_unlabelled(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, RawCase], dict[str, str]]:
    """List `folder/imagesUn`, where a labelled dataset keeps volumes without labels.

    Returns:
        Cases by name, and why others are not used, by name; nothing where there is no such folder.

    Raises:
        UserError: the folder holds files and none is an image of the stated file ending.
    """
    if not _listing(folder / UNLABELLED):
        return {}, {}
    return _cases_of_folder(folder, dataset_json["file_ending"], len(_channels(dataset_json)), UNLABELLED)


def _cases_of_folder(
    folder: Path, ending: str, num_channels: int, images_folder: str = LABELLED
) -> tuple[dict[str, RawCase], dict[str, str]]:
    files = _listing(folder / images_folder)
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    channels: dict[str, dict[int, str]] = {}
    left_out = {}
    for file in (f for f in files if f.endswith(ending)):
        if match := pattern.fullmatch(file):
            channels.setdefault(match[1], {})[int(match[2])] = str(folder / images_folder / file)
        else:
            left_out[file[: -len(ending)]] = f"its file {file} has no channel number (as in case_0000{ending})"
    if not channels:
        raise UserError(_no_images(folder / images_folder, files, ending))
    labels = set() if images_folder == UNLABELLED else set(_listing(folder / "labelsTr"))
    cases = {}
    for name, images in channels.items():
        # One file may hold all channels as a fourth axis; whether it does is seen when it is opened.
        if set(images) not in ({0}, set(range(num_channels))):
            left_out[name] = f"wrong channels: has {_numbers(images)}, needs {_numbers(range(num_channels))}"
            continue
        label = str(folder / "labelsTr" / f"{name}{ending}") if f"{name}{ending}" in labels else None
        cases[name] = RawCase(name, tuple(images[c] for c in sorted(images)), label)
    return cases, left_out


def _cases_of_dataset_key(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, RawCase], dict[str, str]]:
    """Cases of the key `dataset` of dataset.json, which nnU-Net knows with labels only."""

    def absolute(path: str) -> str:
        return os.path.abspath(folder / os.path.expandvars(path))

    cases = {}
    for name, files in dataset_json["dataset"].items():
        if not isinstance(files, dict) or not files.get("images"):
            raise UserError(f'{folder / "dataset.json"}: under "dataset", {name} must be {{"images": ["one file a '
                            f'channel"]}}, with a "label" or without')  # fmt: skip
        label = files.get("label")
        cases[name] = RawCase(name, tuple(map(absolute, files["images"])), absolute(label) if label else None)
    if not cases:
        raise UserError(f'{folder / "dataset.json"}: "dataset" lists no case; remove the key to use imagesTr')
    return cases, {}


def _listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []


def _numbers(channels: Iterable[int]) -> str:
    return " ".join(f"{c:04d}" for c in sorted(channels))


def _no_images(folder: Path, files: list[str], ending: str) -> str:
    if not files:
        return f"{folder} holds no images; put them there as case_0000{ending}"
    endings = Counter("." + file.split(".", 1)[1] for file in files if "." in file)
    found = ", ".join(f"{count} of {e}" for e, count in endings.most_common(3))
    return (
        f"{folder} holds no file named like case_0000{ending}; it holds {found or len(files)}: "
        f'rename them, or mend "file_ending" in dataset.json'
    )

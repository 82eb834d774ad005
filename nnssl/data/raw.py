"""A raw dataset in nnU-Net's format whose labels are optional. Listing it opens no image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.names import shown, why_not_a_name
from nnssl.core.schemas import DatasetFile
from nnssl.core.system import Listing, list_folder

LABELLED, UNLABELLED = "imagesTr", "imagesUn"  # the second is FLARE's name for the folder
# Files that belong to an image of the ending and are no case: nnU-Net's spacing of a TIFF, the voxels of a header.
_COMPANIONS = {".tif": (".json",), ".tiff": (".json",), ".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
_EXAMPLE = '{"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}'


@dataclass(frozen=True)
class RawCase:
    """Files of one case: an image a channel (or one 4-D image with all channels), and its label, if any."""

    name: str
    images: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset.

    Args:
        name: such as Dataset500_Thorax.
        folder: in nnUNet_raw.
        dataset_json: content of its dataset.json.
        cases: by name, sorted.
        left_out: why other cases are not used, by name.
        labelled: whether the cases have labels.
        ignored: why files of imagesTr and labelsTr belong to no case, by their path in the dataset.
        without_label: cases of a labelled dataset that have no label, by name; they are left out too.
    """

    name: str
    folder: Path
    dataset_json: dict[str, Any]
    cases: dict[str, RawCase]
    left_out: dict[str, str]
    labelled: bool
    ignored: dict[str, str] = field(default_factory=dict)
    without_label: dict[str, RawCase] = field(default_factory=dict)

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

    A dataset is labelled if it has any label; its cases without one are left out then, since training on the folder
    would find them without a label. Pretraining uses them (`nnssl.data.dataset_volumes`).

    Raises:
        UserError: dataset.json is missing or wrong, or there are no images of the stated file ending.
    """
    folder = raw / name
    dataset_json = read_dataset_json(folder)
    ignored: dict[str, str] = {}
    if "dataset" in dataset_json:
        cases, left_out = _cases_of_dataset_key(folder, dataset_json)
    else:
        cases, left_out, ignored = _cases_of_folder(folder, dataset_json["file_ending"], len(_channels(dataset_json)))
    labelled = any(case.label for case in cases.values())
    bare = {name: case for name, case in sorted(cases.items()) if labelled and case.label is None}
    left_out |= dict.fromkeys(
        bare, "no label, in a dataset with labels: nnssl_pretrain learns from it, nnU-Net does not"
    )
    listed = {name: case for name, case in sorted(cases.items()) if name not in bare}
    return RawDataset(name, folder, dataset_json, listed, left_out, labelled, ignored, bare)


def list_dataset(raw: Path, name: str, home: Path) -> RawDataset:
    """The raw dataset; without cases if its images were archived and only the preprocessed volumes are left.

    Args:
        raw: nnUNet_raw.
        name: of the dataset.
        home: its folder in nnUNet_preprocessed.

    Raises:
        UserError: as `read_raw_dataset`; or there is neither.
    """
    folder = raw / name
    file = folder / "dataset.json"
    lists_files = file.is_file() and b'"dataset"' in file.read_bytes()
    listing = list_folder(folder / LABELLED)
    archived = not listing.files and not listing.odd and not lists_files
    if archived and (not folder.is_dir() or (home / "dataset.json").is_file()):
        return RawDataset(name, folder, read_dataset_json(home), {}, {}, False)
    return read_raw_dataset(raw, name)


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Content of `folder/dataset.json`, checked; `numTraining` may be absent.

    Raises:
        UserError: the file is missing, is no JSON, or does not fit `nnssl.core.schemas.DatasetFile`.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        raise UserError(f"{file} is missing; the least it can say is: {_EXAMPLE}")
    content: dict[str, Any] = read_json(file, DatasetFile, f"mend it (the least it can say is: {_EXAMPLE})")
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
    listing = list_folder(folder / UNLABELLED)
    if not listing.files and not listing.odd:
        return {}, {}
    cases, left_out, ignored = _cases_of_folder(
        folder, dataset_json["file_ending"], len(_channels(dataset_json)), UNLABELLED
    )
    return cases, left_out | {file.removeprefix(f"{UNLABELLED}/"): reason for file, reason in ignored.items()}


def number_of_labels(folder: Path) -> int:
    """Number of label maps of a raw dataset that nnU-Net could train on, by their names; 0 if it is unknown."""
    try:
        dataset_json = read_dataset_json(folder)
        if len(dataset_json["labels"]) < 2:
            return 0
        if "dataset" in dataset_json:
            return sum(bool(files.get("label")) for files in dataset_json["dataset"].values())
        ending = dataset_json["file_ending"]
        return sum(name.endswith(ending) and not name.startswith(".") for name in os.listdir(folder / "labelsTr"))
    except (OSError, UserError):
        return 0


def label_values(dataset_json: Mapping[str, Any]) -> frozenset[int]:
    """All numbers that a label map of a dataset may hold: of background, labels, regions, ignore."""
    values = dataset_json["labels"].values()
    numbers = (number for value in values for number in (value if isinstance(value, (list, tuple)) else [value]))
    return frozenset({0, *map(int, numbers)})


def _cases_of_folder(
    folder: Path, ending: str, num_channels: int, images_folder: str = LABELLED
) -> tuple[dict[str, RawCase], dict[str, str], dict[str, str]]:
    """Cases, why others are left out, and why files belong to no case."""
    listing = list_folder(folder / images_folder).with_dangling()
    pattern = re.compile(r"(.+)_([0-9]{4})" + re.escape(ending), re.DOTALL)
    channels: dict[str, dict[int, str]] = {}
    left_out = {}
    for file in (f for f in listing.files if f.endswith(ending)):
        if match := pattern.fullmatch(file):
            channels.setdefault(match[1], {})[int(match[2])] = str(folder / images_folder / file)
        else:
            left_out[file[: -len(ending)]] = f"its file {file} has no channel number (as in case_0000{ending})"
    if not channels:
        raise UserError(_no_images(folder / images_folder, listing, ending))
    odd = {
        match[1]: f"its file {file} {why}" for file, why in listing.odd.items() if (match := pattern.fullmatch(file))
    }
    labels = Listing() if images_folder == UNLABELLED else list_folder(folder / "labelsTr").with_dangling()
    odd |= {
        file[: -len(ending)]: f"its label {file} {why}"
        for file, why in labels.odd.items()
        if file.endswith(ending) and file[: -len(ending)] in channels
    }
    cases, with_label = {}, set(labels.files)
    for name, images in channels.items():
        if (reason := why_not_a_name(name, "case")) is not None:
            left_out[name if name.isprintable() else shown(name)] = f"its name {reason}; rename its files"
            continue
        # One file may hold all channels as a fourth axis; whether it does is seen when it is opened.
        if name not in odd and set(images) not in ({0}, set(range(num_channels))):
            needs = range(num_channels)
            odd[name] = (f"wrong channels: has {_numbers(images)}, needs {_numbers(needs)}; a file's name is that of "
                         f"its case and {_numbers(needs[:1])} before {ending}")  # fmt: skip
        if name not in odd:
            label = str(folder / "labelsTr" / f"{name}{ending}") if f"{name}{ending}" in with_label else None
            cases[name] = RawCase(name, tuple(images[c] for c in sorted(images)), label)
    left_out |= odd
    ignored = _ignored(listing, images_folder, ending, cases.keys() | left_out.keys())
    return cases, left_out, ignored | _ignored(labels, "labelsTr", ending, cases.keys() | left_out.keys())


def _ignored(listing: Listing, folder: str, ending: str, cases: set[str]) -> dict[str, str]:
    """Why files belong to none of `cases`; hidden files, such as a file manager's, are not mentioned."""
    found = {}
    for file in listing.files:
        if file.endswith(ending):
            if folder == "labelsTr" and file[: -len(ending)] not in cases:
                found[f"{folder}/{file}"] = "a label without an image"
        elif file.lower().endswith(ending.lower()):
            found[f"{folder}/{file}"] = f"ends in {file[-len(ending) :]}, and dataset.json says {ending}; rename it"
        elif not file.startswith(".") and not file.endswith(_COMPANIONS.get(ending.lower(), ())):
            found[f"{folder}/{file}"] = f"does not end in {ending}"
    for file, why in listing.odd.items():
        stem = file.removesuffix(ending)
        if stem == file or not {stem, re.sub(r"_\d{4}$", "", stem)} & cases:
            found[f"{folder}/{file}"] = why
    return found


def _cases_of_dataset_key(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, RawCase], dict[str, str]]:
    """Cases of the key `dataset` of dataset.json, which nnU-Net knows with labels only."""

    def absolute(path: str) -> str:
        return os.path.abspath(folder / os.path.expandvars(path))

    cases = {}
    for name, files in dataset_json["dataset"].items():
        label = files.get("label")
        cases[name] = RawCase(name, tuple(map(absolute, files["images"])), absolute(label) if label else None)
    if not cases:
        raise UserError(f'{folder / "dataset.json"}: "dataset" lists no case; remove the key to use imagesTr')
    return cases, {}


def _numbers(channels: Iterable[int]) -> str:
    return " ".join(f"{c:04d}" for c in sorted(channels))


def _no_images(folder: Path, listing: Listing, ending: str) -> str:
    files = listing.files
    if not files:
        odd = "".join(f" ({file} {why})" for file, why in list(listing.odd.items())[:1])
        return f"{folder} holds no images{odd}; put them there as case_0000{ending}"
    endings = Counter("." + file.split(".", 1)[1] for file in files if "." in file)
    found = ", ".join(f"{count} of {e}" for e, count in endings.most_common(3))
    return (
        f"{folder} holds no file named like case_0000{ending}; it holds {found or len(files)}: "
        f'rename them, or mend "file_ending" in dataset.json'
    )

"""nnU-Net's dataset fingerprint, from the body if there are no labels; bad volumes are named, not fatal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.errors import BadCase, UserError
from nnssl.core.files import read_json
from nnssl.core.schemas import FingerprintFile
from nnssl.data.check_case import LoadedCase, body_mask_ct, load_case
from nnssl.data.inventory import data_folders
from nnssl.data.pool import map_cases
from nnssl.data.raw import RawCase, RawDataset, label_values
from nnssl.data.raw_files import RawFiles
from nnssl.data.records import Records

# nnU-Net keeps 1e8 intensities of a dataset; 1e7 give percentiles as good, with a tenth of the memory.
_SAMPLES_LABELLED, _SAMPLES_UNLABELLED = 10**8, 10**7
_SAMPLES_PER_CASE = 10**6
MADE_FROM = "nnssl_made_from"  # entry of the fingerprint: digest of its raw files

logger = logging.getLogger("nnssl")


@dataclass(frozen=True)
class CaseScan:
    """What one volume adds to the fingerprint, or why it is left out.

    Args:
        name: of the case.
        reason: why it is left out; None for a healthy volume.
        shape: after nnU-Net's crop, in the file's axes.
        spacing: mm along the same axes.
        relative_size: voxels after the crop by voxels before it.
        intensities: per channel, values drawn from the labelled foreground or from the body.
        orientation: see `nnssl.data.check_case.LoadedCase`.
        warnings: as there.
    """

    name: str
    reason: str | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    relative_size: float = 1.0
    intensities: tuple[np.ndarray, ...] = ()
    orientation: str | None = None
    warnings: tuple[str, ...] = ()


def scan_dataset(
    dataset: RawDataset, reader: Callable[[], Any], num_processes: int, show_progress: bool = True
) -> list[CaseScan]:
    """Read every volume once; the scans in the order of the cases' names.

    Memory: at most 1e7 float32 a channel (1e8 with labels, as nnU-Net), however many volumes there are.
    """
    total = _SAMPLES_LABELLED if dataset.labelled else _SAMPLES_UNLABELLED
    task = partial(
        scan_case,
        reader=reader,
        num_channels=len(dataset.channel_names),
        ct_channel=dataset.ct_channel,
        num_samples=max(1, min(total // len(dataset.cases), _SAMPLES_PER_CASE)),
        label_values=label_values(dataset.dataset_json),
    )
    scans = map_cases(task, list(dataset.cases.values()), num_processes, "Reading volumes", show_progress)
    return sorted(scans, key=lambda scan: scan.name)


def scan_case(
    case: RawCase,
    *,
    reader: Callable[[], Any],
    num_channels: int,
    ct_channel: int | None,
    num_samples: int,
    label_values: Collection[int] | None = None,
) -> CaseScan:
    """Check one volume and draw its intensities with nnU-Net's own functions, after a single reading.

    With a label this is `DatasetFingerprintExtractor.analyze_case`.

    Raises:
        MemoryError: with the name of the case.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    try:
        loaded = load_case(case, reader, num_channels, ct_channel, label_values)
    except BadCase as bad:
        return CaseScan(case.name, reason=str(bad))
    except MemoryError as error:
        raise MemoryError(f"{case.name}: {error or 'reading it'}") from error
    cropped, seg, box = crop_to_nonzero(loaded.image, loaded.label)
    if loaded.label is None:
        seg = _body(loaded, seg, box, ct_channel)
    intensities, _ = DatasetFingerprintExtractor.collect_foreground_intensities(seg, cropped, num_samples=num_samples)
    return CaseScan(
        name=case.name,
        shape=tuple(int(s) for s in cropped.shape[1:]),
        spacing=tuple(float(s) for s in loaded.properties["spacing"]),
        relative_size=float(np.prod(cropped.shape[1:]) / np.prod(loaded.image.shape[1:])),
        intensities=tuple(np.asarray(values, dtype=np.float32) for values in intensities),
        orientation=loaded.orientation,
        warnings=loaded.warnings,
    )


def _body(loaded: LoadedCase, seg: np.ndarray, box: Any, ct_channel: int | None) -> np.ndarray:
    """Body (1, Z, Y, X) inside nnU-Net's crop; `seg` is nnU-Net's -1 outside its nonzero mask."""
    if ct_channel is None:
        return seg >= 0
    crop = tuple(slice(int(low), int(high)) for low, high in box)
    return body_mask_ct(loaded.image[ct_channel])[crop][None]


def read_fingerprint(file: Path) -> dict[str, Any]:
    """Content of dataset_fingerprint.json.

    Raises:
        UserError: it is damaged.
    """
    return dict(read_json(file, FingerprintFile, "delete it, and run the same line again: it is made anew"))


def is_outdated(content: dict[str, Any], dataset: RawDataset, files: RawFiles, home: Path) -> bool:
    """Whether a fingerprint is of other raw files, by its own note, or else by its channels and the records.

    Args:
        content: of the fingerprint.
        dataset: raw.
        files: of the raw dataset.
        home: the dataset's folder in nnUNet_preprocessed.
    """
    if MADE_FROM in content:
        return bool(content[MADE_FROM] != files.digest)
    if len(content["foreground_intensity_properties_per_channel"]) != len(dataset.channel_names):
        return True
    return any(
        files.differ(record.case, record.files) for folder in data_folders(home) for record in Records(folder).all()
    )


def make_fingerprint(scans: list[CaseScan], dataset: RawDataset) -> dict[str, Any]:
    """Content of nnU-Net's dataset_fingerprint.json, from the healthy scans, one at least.

    Raises:
        UserError: the labels mark nothing anywhere.
    """
    healthy = [scan for scan in scans if scan.reason is None]
    properties = {}
    for channel, name in enumerate(dataset.channel_names):
        values = np.concatenate([scan.intensities[channel] for scan in healthy])
        if values.size == 0:
            raise UserError(f"{dataset.name}: its labels mark no voxel in any case, so that the intensities of channel "
                            f"{name} are unknown; take labelsTr away to use the body instead")  # fmt: skip
        properties[str(channel)] = _intensity_properties(values)
    return {
        "spacings": [list(scan.spacing) for scan in healthy],
        "shapes_after_crop": [list(scan.shape) for scan in healthy],
        "foreground_intensity_properties_per_channel": properties,
        "median_relative_size_after_cropping": float(np.median([scan.relative_size for scan in healthy])),
    }


def _intensity_properties(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(np.mean(values)),
        "median": float(median),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }

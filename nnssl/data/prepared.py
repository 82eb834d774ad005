"""The preprocessed datasets of a run; planned and preprocessed first where that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import ReportFile
from nnssl.core.schemas import FingerprintFile
from nnssl.data.folders import dataset_argument, dataset_id, dataset_name, require_folders
from nnssl.data.guard import Images, warn_of_images
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.planning import load_plans
from nnssl.data.raw import read_dataset_json
from nnssl.data.report import NEW_REPORT, report_file
from nnssl.data.storage import body_folder
from nnssl.data.volumes import VolumeFolder
from nnssl.data.without_label import folder_without_label, ready_without_label


@dataclass(frozen=True)
class PreparedDatasets:
    """What a run reads; plans, dataset.json, fingerprint and orientation are those of the first dataset."""

    folders: list[VolumeFolder]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    fingerprint: dict[str, Any]
    results: Path
    orientation: str | None


def prepare_datasets(
    dataset_ids: Sequence[int | str],
    plans: str,
    configuration: str,
    num_processes: int | None,
    may_preprocess: bool,
    allow_other_intensities: bool = False,
) -> PreparedDatasets:
    """Datasets with plans, volumes and body masks.

    Args:
        dataset_ids: numbers or names; the first one's plans are shared by all.
        plans: name of plans or of a preset.
        configuration: a 3D one of the plans.
        num_processes: for preprocessing, None for the default.
        may_preprocess: False where several processes would do it at once; everything has to be there then.
        allow_other_intensities: whether datasets may be of another modality than the first one.

    Raises:
        UserError: from `plan_and_preprocess`; or something is missing that must not be made here.
    """
    _, preprocessed, results = require_folders("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    names = list(dict.fromkeys(dataset_name(d) for d in dataset_ids))
    if may_preprocess:
        # what is done already costs a directory listing
        plan_and_preprocess(names, preset=plans, configuration=configuration, num_processes=num_processes,
                            allow_other_intensities=allow_other_intensities)  # fmt: skip
    plans_names = [plans] + [f"{plans}From{dataset_id(names[0])}"] * (len(names) - 1)
    found = [load_plans(preprocessed / n, p) for n, p in zip(names, plans_names, strict=True)]
    for name, content in zip(names, found, strict=True):
        if content is None:
            ids = " ".join(map(dataset_argument, names))
            raise UserError(f"{name} has no plans {plans} yet, and processes that train together do not make them; run "
                            f"nnssl_plan_and_preprocess -d {ids} -p {plans} first")  # fmt: skip
    own = [content for content in found if content is not None]
    fingerprint = preprocessed / names[0] / "dataset_fingerprint.json"
    first, *others = (majority_orientation(preprocessed / n, p) for n, p in zip(names, plans_names, strict=True))
    oriented = {f"most volumes of {n}": letters for n, letters in zip(names[1:], others, strict=True)}
    warn_of_images(Images(names[0], orientation=first), Images("", orientations=oriented))
    return PreparedDatasets(
        [f for n, p in zip(names, own, strict=True) for f in volume_folders(preprocessed, n, p, configuration)],
        own[0],
        read_dataset_json(preprocessed / names[0]),
        read_json(fingerprint, FingerprintFile, "delete it") if fingerprint.is_file() else {},
        results,
        first,
    )


def volume_folders(preprocessed: Path, name: str, plans: dict[str, Any], configuration: str) -> list[VolumeFolder]:
    """nnU-Net's folder of a dataset; and where it has labels and cases without one are ready, the folder of those."""
    with_labels = VolumeFolder.from_plans(preprocessed, name, plans, configuration)
    ready = ready_without_label(with_labels.images)
    if not ready:
        return [with_labels]
    folder = folder_without_label(with_labels.images)
    return [
        with_labels, replace(with_labels, images=folder, bodies=body_folder(folder), only=ready, in_splits=False)
    ]  # fmt: skip


def majority_orientation(folder: Path, plans_name: str) -> str | None:
    """Commonest orientation of a preprocessed dataset's volumes, such as LPS, from its report; None where unknown."""
    file = report_file(folder, plans_name)
    if not file.is_file():
        return None
    majority: str | None = read_json(file, ReportFile, NEW_REPORT)["orientation"]["majority"]
    return majority

"""`nnssl.import_weights`: public weights become a run folder, as a finished pretraining of this package leaves one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnssl.checkpoints.files import FINAL, FORMAT, check_entries, package_versions, save_checkpoint
from nnssl.checkpoints.imported import Taken, Weights, imported_content
from nnssl.checkpoints.pretrained import finished_pretrainings
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.core.names import check_name, why_not_a_name
from nnssl.data.folders import dataset_id, existing_datasets, require_folders
from nnssl.data.next_lines import Way, command, commands_of, dataset_word, rendered
from nnssl.interchange.family import Family, Imported
from nnssl.interchange.licensing import licence_warnings
from nnssl.interchange.opening import Opened, opened
from nnssl.interchange.registry import family_of
from nnssl.methods.registry import IMPORTED
from nnssl.pretraining.folder import check_output, claimed, open_folder, run_folder
from nnssl.pretraining.weights import write_nnunet_weights

REPORT = "import_report.json"
_NAMED = 5  # tensors that the log names
FOLD = "all"

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class ImportedRun:
    """What `import_weights` leaves.

    Args:
        folder: of the run; its `config.json` holds `about` as `imported`.
        about: family, title, licence, citation, url, source (file and sha256), axes, levels, and how many tensors are
            mapped and left.
        next: lines to type next, as they are printed.
    """

    folder: Path
    about: dict[str, Any]
    next: tuple[str, ...] = ()


def import_weights(
    source: str | Path, dataset: str, fold: str | None = None, licence: str | None = None, overwrite: bool = False
) -> ImportedRun:
    """Read public weights by their content and write them as a finished pretraining of `dataset`.

    The run is `nnUNet_results/DATASET/nnssl_imported__PLANS__CONFIGURATION/fold_all`, and takes the place of any run of
    `nnssl_pretrain`. Nothing needs to be preprocessed, and nothing in the file is executed.

    Args:
        source: a file of PyTorch or safetensors, a folder with one, or a zip of a model folder.
        dataset: name that the weights get, such as Dataset900_OpenMind; its number must be free.
        fold: of a model folder of nnU-Net with several.
        licence: of the weights; None for that of their authors, where it is known.
        overwrite: replace what an earlier import left there.

    Raises:
        UserError: the file cannot be opened, is of no known family, or is not whole; or the run exists already.
    """
    check_name(dataset, "dataset", "-o")
    (results,) = require_folders("nnUNet_results")
    _check_number(dataset, results)
    licence = " ".join((licence or "").split()) or None
    with opened(source, fold) as file:
        family = family_of(file)
        found = family.read(file)
        weights = _named(found.weights, dataset)
        about = _about(family, found, file, licence)
        taken = imported_content(weights, file.path)
    left = dict.fromkeys(taken.left, "in no part of the network that is kept") | dict(found.left)
    about |= {"tensors_mapped": len(taken.mapped), "tensors_left": len(left), "levels": weights.levels}
    about |= {"fresh": list(weights.fresh), "method": weights.made_by}
    taken.content[IMPORTED] = about
    folder = run_folder(results, dataset, IMPORTED, weights.plans["plans_name"], weights.configuration, FOLD)
    _write(folder, taken, about, left, overwrite)
    _say(folder, found, about, left, weights)
    ways = _ways(dataset)
    log.info(rendered(ways))
    return ImportedRun(folder, about, commands_of(ways))


def _check_number(dataset: str, results: Path) -> None:
    """Raise UserError where another dataset has this number, which commands could then not tell apart."""
    finished = {file.parts[-4] for file in finished_pretrainings(results)}
    names = {*existing_datasets(), *(name for name in finished if why_not_a_name(name, "dataset") is None)}
    others = sorted(name for name in names - {dataset} if dataset_id(name) == dataset_id(dataset))
    if others:
        raise UserError(f"-o {dataset} has the number of {others[0]}; choose another one, such as Dataset900_...")


def _named(weights: Weights, dataset: str) -> Weights:
    """The same weights, as of this dataset."""
    plans = {**weights.plans, "dataset_name": dataset}
    return replace(weights, plans=plans)


def _about(family: Family, found: Imported, file: Opened, licence: str | None) -> dict[str, Any]:
    return {
        "family": family.name,
        "title": found.title,
        "licence": licence or found.licence,
        "citation": found.citation,
        "url": found.url,
        "source": {"file": file.file, "sha256": file.sha256},
        "axes": found.axes,
        "imported_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    } | ({"derived": True} if found.derived else {})


def _write(folder: Path, taken: Taken, about: Mapping[str, Any], left: Mapping[str, str], overwrite: bool) -> None:
    """Write the run; the checkpoint, which makes it a finished one, comes after all that describes it."""
    content = taken.content
    check_entries({"format": FORMAT, **content}, folder / FINAL)
    check_output(folder, resume=False, overwrite=overwrite)
    described = {
        "method": IMPORTED,
        "options": content["config"],
        "configuration": content["configuration"],
        "plans": content["plans"]["plans_name"],
        "fold": FOLD,
        "datasets": [content["plans"]["dataset_name"]],
        IMPORTED: about,
        "versions": package_versions(),
    }
    with claimed(folder, patient=False):
        open_folder(folder, overwrite, described, content["plans"], content["dataset_json"])
        write_json(folder / REPORT, {**about, "mapped": taken.mapped, "left": dict(left)})
        save_checkpoint(content, folder / FINAL)
        write_nnunet_weights(folder)


def _say(folder: Path, found: Imported, about: Mapping[str, Any], left: Mapping[str, str], weights: Weights) -> None:
    maps = "encoder and decoder" if weights.levels == "decoder" else "encoder"
    turned = ", axes turned from x, y, z to z, y, x" if found.axes == "xyz" else ""
    log.info(f"{found.title}: {about['tensors_mapped']} tensors of the {maps} taken{turned}, {len(left)} left")
    if weights.fresh:
        log.warning(f"the weights do not hold {', '.join(weights.fresh)}*: these parts begin with random values")
    for name, reason in list(left.items())[:_NAMED]:
        log.info(f"  left: {name} ({reason})")
    if len(left) > _NAMED:
        log.info(f"  and {len(left) - _NAMED} more, see {REPORT}")
    if about["licence"]:
        log.info(f"licence: {about['licence']}")
    if found.licence not in (None, about["licence"]):
        log.warning(f"these weights are known as licensed {found.licence}, and -license says {about['licence']}: "
                    f"make sure that their authors gave it to you")  # fmt: skip
    for warning in licence_warnings(about["licence"], f"the weights in {folder}"):
        log.warning(warning)
    if found.citation:
        log.info(f"cite: {found.citation}")
    log.info(f"imported to {folder}")


def _ways(dataset: str) -> list[Way]:
    line = command("nnssl_transfer", "-s", dataset_word(dataset), "-t", "TARGET")
    return [Way((line,), "give your labelled dataset TARGET the spacing, intensities and network of these weights")]

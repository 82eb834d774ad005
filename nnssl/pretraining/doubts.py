"""What to say of a run before its first step: each sentence has a number, its limit, the reason and what to type."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from nnssl.core.errors import UserError
from nnssl.data.fingerprint import read_fingerprint
from nnssl.data.guard import Images, check_images
from nnssl.data.loader import Cases, reading
from nnssl.methods.base import MethodConfig
from nnssl.pretraining.crops import crop_warning
from nnssl.pretraining.optimisation import learning_rate
from nnssl.pretraining.setup import Setup

MOST_WARMUP = 0.5  # of the steps
FEWEST_HELD_OUT = 2
_MOST_OPENED = 200  # volumes of equal size on the disk that are compared


def doubts(setup: Setup) -> list[str]:
    """Warnings about a new run, most of which have none; no voxel is read for them."""
    found = (crop_warning(setup), warmup_warning(setup.config), held_out_warning(setup), copies_warning(setup))
    return [*(sentence for sentence in found if sentence is not None), *probe_warnings(setup)]


def warmup_warning(config: MethodConfig) -> str | None:
    """A warm-up that takes most of the run."""
    steps = config.num_epochs * config.steps_per_epoch
    if config.warmup_steps <= MOST_WARMUP * steps:
        return None
    highest = learning_rate(config, min(steps - 1, config.warmup_steps))
    return (f"the warm-up of {config.warmup_steps:,} steps takes more than half of the {steps:,} steps of this run, "
            f"whose rate reaches {highest:.1e} of {config.learning_rate:.1e}: most steps change the network little; "
            f"with -o warmup_steps={max(steps // 10, 1)} it does not")  # fmt: skip


def held_out_warning(setup: Setup) -> str | None:
    """A held-out loss of a single volume."""
    if len(setup.val) != 1 or not setup.config.val_steps_per_epoch:
        return None
    splits = setup.train.folders[0].images.parent / "splits_final.json"
    more = "-f 0 holds out the validation cases of splits_final.json" if splits.is_file() and setup.fold == "all" else (
        "-probe ID measures the features on a labelled dataset")  # fmt: skip
    return (f"1 volume is held out ({setup.val.label(0)}; at least {FEWEST_HELD_OUT} tell more), so that the val loss "
            f"follows the draws of that one; {more}")  # fmt: skip


def probe_warnings(setup: Setup) -> list[str]:
    """A probe whose files have much longer voxels than the plans of the run."""
    if setup.probe is None:
        return []
    file = setup.probe.folder.images.parent / "dataset_fingerprint.json"
    if not file.is_file():
        return []
    axes = setup.plans.get("transpose_forward", [0, 1, 2])
    median = np.median(read_fingerprint(file)["spacings"], axis=0)[axes].tolist()
    run = Images(f"the pretraining on {setup.train.folders[0].name}", spacing=setup.resolved["spacing"])
    return check_images(run, Images("", voxels={f"the median of the probe {setup.probe.folder.name}": median}))


def copies_warning(setup: Setup) -> str | None:
    """Volumes of the run that are the same scan under two names."""
    whole = [(setup.train, i, "training") for i in range(len(setup.train))]
    whole += [(setup.val, i, "held-out") for i in range(len(setup.val))]
    pairs = list(_copies(whole))
    if not pairs:
        return None
    (cases, i, kind), (others, j, other_kind) = next((p for p in pairs if p[0][2] != p[1][2]), pairs[0])
    effect = "a contrastive loss takes them for two patients" if kind == other_kind else (
        f"the first is {kind} and the second {other_kind}, so that the val loss is too low")  # fmt: skip
    more = f" ({len(pairs)} such pairs)" if len(pairs) > 1 else ""
    return (f"{cases.label(i)} and {others.label(j)} are the same scan{more}: {effect}; remove one of them from "
            f"nnUNet_raw and run the command again")  # fmt: skip


Place = tuple[Cases, int, str]


def _copies(volumes: Sequence[Place]) -> Iterator[tuple[Place, Place]]:
    """Pairs with the same size on the disk, shape, range of intensities and number of body voxels in every slice."""
    by_size: dict[int, list[Place]] = {}
    listed = {folder: {entry.name: entry for entry in os.scandir(folder.images)}
              for folder in {f for cases, _, _ in volumes for f in cases.folders}}  # fmt: skip
    for cases, i, kind in volumes:
        entry = listed[cases.folders[cases.folder_of[i]]].get(f"{cases.names[i]}.b2nd")
        if entry is not None:
            by_size.setdefault(entry.stat().st_size, []).append((cases, i, kind))
    alike = [places for places in by_size.values() if len(places) > 1]
    opened = 0
    for places in alike:
        opened += len(places)
        if opened > _MOST_OPENED:
            return
        looks = [_look(*place[:2]) for place in places]
        for (a, look), (b, other) in combinations(zip(places, looks, strict=True), 2):
            if look is not None and look == other:
                yield a, b


def _look(cases: Cases, i: int) -> Any:
    """What tells a volume from others without reading it; None where it cannot be opened."""
    folder, case = cases.folders[cases.folder_of[i]], str(cases.names[i])
    try:
        with reading(folder, case):
            return folder.open(case).look
    except UserError:
        return None

"""What the golden net records: kinds, the entries of each, and how an entry is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nnssl
from tests.golden import analysis, inside, networks, runs, surface, trainings
from tests.golden.world import NETWORKS, SOURCE, TARGET, World


class Kind(NamedTuple):
    """Names of the entries as they are now, and what one of them is now."""

    names: Callable[[], Sequence[str]]
    record: Callable[[World, str], Any]


_ANALYSES: dict[str, Callable[[World], Any]] = {
    "load_pretrained": analysis.loaded,
    "embed": analysis.embedded,
    "match": analysis.matched,
    "evaluate": analysis.evaluated,
    "annotated_labels": analysis.annotated,
}
_FIGURES = ("similarity", "pca", "tsne", "matches", "views", "reconstruction")
_PREDICTIONS: dict[str, Callable[[World], Any]] = {
    **{kind: lambda world, kind=kind: trainings.prediction(world, kind)  # type: ignore[misc]
       for kind in ("probe", "fine-tuning", "encodings")},
    "onnx": trainings.onnx,
}  # fmt: skip
_WITHOUT_PRETRAINING = ("nnUNetTrainer_PartialLabels", "nnUNetTrainer_LAPNDistill", "nnUNetTrainer_SSLScratch")

KINDS = {
    "methods": Kind(inside.method_names, runs.method),
    "probed": Kind(lambda: ["vox2vec"], lambda world, _: runs.probed(world)),
    "transfers": Kind(inside.method_names, trainings.transfer),
    "predictions": Kind(lambda: list(_PREDICTIONS), lambda world, name: _PREDICTIONS[name](world)),
    "trainers": Kind(surface.trainers, trainings.trainer),
    "trainings": Kind(lambda: _WITHOUT_PRETRAINING, trainings.steps),
    "presets": Kind(lambda: list(inside.preset_files()), lambda _, name: networks.preset(name)),
    "networks": Kind(lambda: list(NETWORKS), networks.small),
    "preprocessed": Kind(lambda: [SOURCE, TARGET], analysis.preprocessed),
    "analyses": Kind(lambda: list(_ANALYSES), lambda world, name: _ANALYSES[name](world)),
    "figures": Kind(lambda: _FIGURES, analysis.figure),
    "functions": Kind(lambda: nnssl.__all__, lambda _, name: surface.signature(name)),
    "help": Kind(surface.helps, lambda _, line: surface.help_text(line)),
    "calls": Kind(lambda: list(surface.LINES), lambda _, line: surface.call(line)),
}

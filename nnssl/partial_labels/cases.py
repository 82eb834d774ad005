"""nnU-Net's data set of preprocessed cases as training on partial labels sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnssl.data.annotated_labels import AnnotatedLabels
from nnssl.data.label_maps import raw_contradicts
from nnssl.errors import UserError


class AnnotatedCases:
    """A data set that knows foreground only of the classes that are annotated in a case.

    nnU-Net's loader centres its foreground patches on these voxels.

    Args:
        dataset: nnU-Net's.
        annotations: of its cases.
        classes: keys of `class_locations` that are labels or regions; others, such as that of all voxels that are not
            ignored, stay.
    """

    def __init__(self, dataset: Any, annotations: AnnotatedLabels, classes: Iterable[Any]) -> None:
        self._dataset, self._annotations, self._classes = dataset, annotations, list(classes)
        self.identifiers: list[str] = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, label map, label map of the previous stage or None, and properties."""
        image, seg, previous, properties = self._dataset.load_case(identifier)
        locations = dict(properties["class_locations"])
        annotated = self._annotations.heads(identifier, self._classes)
        for which, known in zip(self._classes, annotated, strict=True):
            if not known and which in locations:
                locations[which] = []
        return image, seg, previous, {**properties, "class_locations": locations}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As `load_case`."""
        return self.load_case(identifier)


def refuse_contradictions(annotations: AnnotatedLabels, dataset: Any, name: str, plans: str) -> None:
    """Raise UserError where the label map of a case holds a class that its list says is not annotated.

    Regions overlap, so that their locations do not tell; `nnssl_annotated_labels check` reads the label maps.

    Args:
        annotations: of the dataset.
        dataset: nnU-Net's data set of preprocessed cases.
        name: of the dataset, for the message.
        plans: their name, for the message.
    """
    for case in sorted(annotations.partial().keys() & set(dataset.identifiers)):
        allowed = annotations.values(case)
        for which, voxels in dataset.load_case(case)[3]["class_locations"].items():
            if not isinstance(which, tuple) and len(voxels) > 0 and int(which) not in allowed:
                names = [label for label, values in annotations.labels.items() if int(which) in values]
                raise UserError(f"the label map of {case} holds {' '.join(names)}, which annotated_labels says is not "
                                f"annotated there; {_way_out(annotations, case, name, plans)}")  # fmt: skip


def _way_out(annotations: AnnotatedLabels, case: str, name: str, plans: str) -> str:
    contradicts = raw_contradicts(annotations, name, case)
    if contradicts is None:
        return f"add it to the list of {case} in the dataset.json of {name} in nnUNet_preprocessed"
    if contradicts:
        return f"to see all such voxels, type: nnssl_annotated_labels check -d {name}"
    return (f"it was mended in nnUNet_raw, and the preprocessed one was not: type: "
            f"nnssl_plan_and_preprocess -d {name} -p {plans}")  # fmt: skip

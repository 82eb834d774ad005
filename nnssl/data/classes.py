"""The classes that a network must find, as nnU-Net's label manager lists them, and their names."""

from __future__ import annotations

from typing import Any

Class = int | tuple[int, ...]  # a label, or the labels of a region


def foreground_classes(label_manager: Any) -> list[Class]:
    """Labels, or regions if the dataset has them, in the order of the network's outputs."""
    manager = label_manager
    return [_key(c) for c in (manager.foreground_regions if manager.has_regions else manager.foreground_labels)]


def class_names(dataset_json: dict[str, Any]) -> dict[Class, str]:
    """The names of all classes of a dataset.json, by label or region."""
    return {_key(value): name for name, value in dataset_json["labels"].items()}


def _key(value: Any) -> Class:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)

"""Classes and functions of nnU-Net that plans and dataset.json name without a module.

nnU-Net calls anything that a module of the right package holds under that name, even what the module has imported.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["reader", "normalisation", "preprocessor", "resampling function", "label manager"]


@dataclass(frozen=True)
class _Place:
    """Package that nnU-Net searches, module and name of the base class (None: functions), and nnU-Net's own names."""

    package: str
    base: tuple[str, str] | None
    own: tuple[str, ...]


# nnU-Net's own names need no search, which imports much of nnU-Net.
_PLACES: dict[Kind, _Place] = {
    "reader": _Place(
        "imageio",
        ("imageio.base_reader_writer", "BaseReaderWriter"),
        ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO",
         "Tiff3DIO"),
    ),
    "normalisation": _Place(
        "preprocessing.normalization",
        ("preprocessing.normalization.default_normalization_schemes", "ImageNormalization"),
        ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
         "RGBTo01Normalization"),
    ),
    "preprocessor": _Place(
        "preprocessing",
        ("preprocessing.preprocessors.default_preprocessor", "DefaultPreprocessor"),
        ("DefaultPreprocessor",),
    ),
    "resampling function": _Place(
        "preprocessing.resampling",
        None,
        ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"),
    ),
    "label manager": _Place(
        "utilities.label_handling",
        ("utilities.label_handling.label_handling", "LabelManager"),
        ("LabelManager",),
    ),
}  # fmt: skip


@cache
def why_not_found(name: str, kind: Kind) -> str | None:
    """Why nnU-Net must not use a name, as the end of "it ..."; None where it may."""
    place = _PLACES[kind]
    if name in place.own or _is_of_kind(name, place):
        return None
    return f"is no {kind} of nnU-Net; its own are {', '.join(place.own)}"


def _is_of_kind(name: str, place: _Place) -> bool:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    package = f"nnunetv2.{place.package}"
    folder = os.path.join(nnunetv2.__path__[0], *place.package.split("."))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = recursive_find_python_class(folder, name, package)
    if place.base is None:
        home = found.__module__ if inspect.isfunction(found) else ""
        return home.startswith(f"{package}.") and home != f"{package}.utils"  # which imports modules for its search
    module, base = place.base
    return isinstance(found, type) and issubclass(found, getattr(importlib.import_module(f"nnunetv2.{module}"), base))

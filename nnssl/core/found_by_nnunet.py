"""Classes and functions that plans and dataset.json name without their module, for nnU-Net to find in its own."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Literal

Kind = Literal["reader", "normalisation", "preprocessor", "resampling", "label manager"]

# The package that nnU-Net looks into, and its own names: these need no search, which imports all of nnU-Net.
_PLACES: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "reader": ("imageio", ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient",
                           "NaturalImage2DIO", "Tiff3DIO")),
    "normalisation": ("preprocessing.normalization",
                      ("ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
                       "RGBTo01Normalization")),
    "preprocessor": ("preprocessing", ("DefaultPreprocessor",)),
    "resampling": ("preprocessing.resampling",
                   ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack")),
    "label manager": ("utilities.label_handling", ("LabelManager",)),
}  # fmt: skip


@cache
def why_not_found(name: str, kind: Kind) -> str | None:
    """The reason for which nnU-Net could not use a name, as the end of "it ..."; None where it can.

    What is found has to be defined in the package that nnU-Net looks into, and not only imported there.
    """
    place, known = _PLACES[kind]
    if name in known or _is_defined(name, f"nnunetv2.{place}"):
        return None
    return f"is no {kind} of nnU-Net; its own are {', '.join(known)}"


def _is_defined(name: str, module: str) -> bool:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = "/".join((nnunetv2.__path__[0], *module.split(".")[1:]))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = recursive_find_python_class(folder, name, module)
    return callable(found) and str(getattr(found, "__module__", "")).startswith(f"{module}.")

"""What is scored: the labels or regions of a dataset.json, and the tolerance of each one's surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnssl.data.trusted_names import refuse_untrusted_names
from nnssl.errors import UserError

TOLERANCE_MM = 2.0  # where none is given


@dataclass(frozen=True)
class Structure:
    """A label or region.

    Args:
        name: in dataset.json.
        key: as nnU-Net has it: the label's number, or a tuple of them for a region.
        tolerance: of its surface, in mm.
    """

    name: str
    key: int | tuple[int, ...]
    tolerance: float

    @property
    def values(self) -> tuple[int, ...]:
        """The numbers in a label file that belong to it."""
        return self.key if isinstance(self.key, tuple) else (self.key,)


def read_structures(
    dataset_json: dict[str, Any], plans: dict[str, Any], tolerances: Sequence[str | float] = ()
) -> list[Structure]:
    """Foreground labels, or regions where the dataset has them, as nnU-Net's label manager lists them.

    Args:
        dataset_json: its `labels` name them.
        plans: they name the label manager.
        tolerances: see `read_tolerances`.

    Raises:
        UserError: see `read_tolerances`; the plans name what nnU-Net must not call.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    refuse_untrusted_names(plans)
    manager = PlansManager(plans).get_label_manager(dataset_json)
    keys = [_key(k) for k in (manager.foreground_regions if manager.has_regions else manager.foreground_labels)]
    names = {_key(value): name for name, value in dataset_json["labels"].items()}
    limits = read_tolerances(tolerances, [names[key] for key in keys])
    return [Structure(names[key], key, limits[names[key]]) for key in keys]


def read_tolerances(given: Sequence[str | float], names: Sequence[str]) -> dict[str, float]:
    """Tolerance in mm of every structure.

    Args:
        given: a number for all structures (2 mm where there is none) and any `NAME=NUMBER` for single ones.
        names: of the structures.

    Raises:
        UserError: no number of at least 0, two numbers for all, an unknown or repeated name.
    """
    common = [item for item in given if "=" not in str(item)]
    if len(common) > 1:
        raise UserError(f"-tolerance takes one number for all structures, not {len(common)}; write the others as "
                        f"{names[0] if names else 'NAME'}={common[1]}")  # fmt: skip
    single: dict[str, float] = {}
    for item in given:
        name, sign, value = str(item).rpartition("=")
        if not sign:
            continue
        if name not in names:
            raise UserError(f"-tolerance names {name or 'nothing'}, which is no structure of dataset.json; those are "
                            f"{', '.join(names)}")  # fmt: skip
        if name in single:
            raise UserError(f"-tolerance names {name} twice; leave one out")
        single[name] = _millimetres(value)
    default = _millimetres(common[0]) if common else TOLERANCE_MM
    return {name: single.get(name, default) for name in names}


def _key(value: Any) -> int | tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)


def _millimetres(value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"-tolerance takes millimetres of at least 0, not {value}; type for example -tolerance 2")
    return number

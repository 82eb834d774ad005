"""What an ONNX file says of itself: all that nnU-Net's prediction needs beside the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nnssl.core.json_files import checked
from nnssl.core.own_files import OnnxFile
from nnssl.errors import UserError

FORMAT = 1
_PREFIX = "nnssl."


@dataclass(frozen=True)
class Description:
    """A trained model without its network. Every value is of a JSON type.

    Args:
        plans: the model folder's plans.json.
        dataset_json: the model folder's dataset.json.
        configuration: such as "3d_fullres".
        fold: number, or "all".
        trainer_name: name of the trainer's class.
        mirroring_axes: spatial axes along which prediction mirrors, as the training allows it; None for no mirroring.
        nnssl_version: version that wrote this.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    trainer_name: str
    mirroring_axes: list[int] | None
    nnssl_version: str

    def to_metadata(self) -> dict[str, str]:
        """One entry a field, as JSON, for the metadata of an ONNX file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_PREFIX + name: json.dumps(value) for name, value in {"format": FORMAT, **values}.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: object) -> Description:
        """The description in the metadata of `file`.

        Raises:
            UserError: there is none, or one of another version of the format.
        """
        made_by = "give a file that nnssl_export_onnx of this version wrote"
        found = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
        if not found:
            raise UserError(f"{file} does not say which plans its network belongs to; {made_by}")
        try:
            values = {name: json.loads(value) for name, value in found.items()}
            if values.pop("format", None) != FORMAT:
                raise ValueError("another format")
        except (ValueError, RecursionError) as error:
            raise UserError(f"the description in {file} cannot be read; {made_by}") from error
        checked(values, OnnxFile, file, made_by)
        return cls(**{field.name: values[field.name] for field in fields(cls)})

"""What a user sets for a training: a variable of the environment, else the plans' block `nnssl`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def given(name: str, block: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str | None:
    """A setting as text: that of the variable `nnssl_NAME`, else that of the plans' block; None if neither has it."""
    value = environment.get(f"nnssl_{name}") or block.get(name)
    return None if value is None else str(value)

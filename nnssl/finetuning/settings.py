"""What a user sets for a training: a variable of the environment, else the plans' block `nnssl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def given(name: str, block: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str | None:
    """A setting as text: that of the variable `nnssl_NAME`, else that of the plans' block; None if neither has it."""
    value = environment.get(f"nnssl_{name}") or block.get(name)
    return None if value is None else str(value)


def by_plans(name: str, block: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `given` takes a setting from the plans."""
    return not environment.get(f"nnssl_{name}") and block.get(name) is not None


def how_to_set(planned: bool, **settings: Any) -> str:
    """What to type, or to write into the plans, as the end of a message.

    Args:
        planned: whether the plans set it so far.
        settings: new values; None to set no such thing.
    """
    wanted = {name: value for name, value in settings.items() if value is not None}
    if planned:
        if not wanted:
            return f'take {" and ".join(json.dumps(name) for name in settings)} out of "nnssl" in the plans'
        return f'write {json.dumps(wanted)[1:-1]} into "nnssl" in the plans'
    if not wanted:
        return f"unset {' and '.join(f'nnssl_{name}' for name in settings)}"
    values = {name: ",".join(v) if isinstance(v, (list, tuple)) else v for name, v in wanted.items()}
    return f"type: export {' '.join(f'nnssl_{name}={value}' for name, value in values.items())}"

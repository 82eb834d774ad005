from __future__ import annotations

import zipfile
from pathlib import Path

from tests.environments.bounds import raised, requirements

METADATA = """Name: house
Requires-Dist: SimpleITK>=2.2.1
Requires-Dist: torch>=2.4
Provides-Extra: onnx
Requires-Dist: torch>=2.6; extra == 'onnx'
Provides-Extra: swin
Requires-Dist: monai>=1.4; extra == 'swin'
"""


def test_requirements__are_those_of_the_chosen_extras(tmp_path: Path) -> None:
    wheel = tmp_path / "house-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("house-1.dist-info/METADATA", METADATA)
    assert requirements(wheel, []) == ["SimpleITK>=2.2.1", "torch>=2.4"]
    assert requirements(wheel, ["onnx"]) == ["SimpleITK>=2.2.1", "torch>=2.4", "torch>=2.6"]


def test_raised__names_what_is_above_the_highest_bound_that_was_asked_for() -> None:
    asked = ["SimpleITK>=2.2.1", "torch>=2.4", "torch>=2.6", "monai>=1.4", "numpy>=1.24"]
    pins = "simpleitk==2.4.0\ntorch==2.6.0\nmonai==1.4.0\nnumpy==1.24.0\nother==3\n"
    assert raised(pins, asked) == ["simpleitk 2.2.1 -> 2.4.0"]

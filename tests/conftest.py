from __future__ import annotations

from pathlib import Path

import pytest
import torch

# Many tiny operations: a second thread costs more than it brings, and much more where tests share the cores.
torch.set_num_threads(1)

_HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_folders_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must never see the nnU-Net folders of whoever runs it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "nnssl_trusted_modules"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The walks through whole commands come first: they are long, and several processes shall end together."""
    items.sort(key=lambda item: item.path.parent != _HERE)

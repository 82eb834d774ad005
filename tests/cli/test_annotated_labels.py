from __future__ import annotations

import json

import pytest

from nnssl.cli.annotated_labels import main
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset

__all__ = ["folders"]  # the fixture


def test_main__propose_and_check(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_ct_dataset(folders.raw, 17, "Organs", 2, shape=(8, 12, 12), labelled=True) / "dataset.json"
    main(["propose", "-d", "17", "-np", "1"])
    line = "nnUNetv2_train Dataset017_Organs CONFIGURATION FOLD -tr nnUNetTrainer_PartialLabels"
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"no list is needed; now train: {line}")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotated_labels": {"case_001": ["liver"]}}))
    with pytest.raises(SystemExit) as exit_:
        main(["check", "-d", "17", "-np", "1"])
    assert exit_.value.code == 1
    assert "warning: case_001: " in capsys.readouterr().out
    file.write_text(file.read_text().replace('["liver"]', '["liver", "spin"]'))
    with pytest.raises(SystemExit) as exit_:
        main(["check", "-d", "17", "-np", "1"])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no label: spin (in case_001)" in error and error.count("\n") == 1

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.cli.evaluate import main
from tests.benchmarking.labels import cube, describe, write_labels


@pytest.mark.quick
def test_main__prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the model folder describes the labels, not that of the predictions
    predicted = tmp_path / "model" / "fold_0" / "validation"
    describe(tmp_path / "model")
    for case in "ab":
        write_labels(tmp_path / "truth" / f"{case}.nii.gz", cube())
        write_labels(predicted / f"{case}.nii.gz", cube())
    main([str(tmp_path / "truth"), str(predicted), "-tolerance", "1", "spleen=2.5", "-np", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert "only 2 cases" in printed[0]
    lines = [line.split() for line in printed[1:]]
    assert lines[1] == ["liver", "1.000", "±", "0.000", "1.000", "±", "0.000", "1", "mm", "2"]
    assert lines[2][-3:] == ["2.5", "mm", "2"] and lines[3][0] == "mean"
    assert lines[4] == ["written", "to", str(predicted)] and (predicted / "nnssl_evaluation.csv").is_file()


def test_main__a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and error.startswith("error: there is no dataset.json") and error.count("\n") == 1

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from nnssl.cli import visualize
from nnssl.cli.match import main
from tests.phantoms import ct_volume, write_volume
from tests.pretrainings import CT_JSON, tiny_plans, write_pretraining


def _folder(tmp_path: Path, method: str) -> list[str]:
    """Arguments for a run with random weights and two phantoms."""
    run = write_pretraining(tmp_path, tiny_plans(patch_size=[16, 32, 32]), method=method).parent
    for i, name in enumerate("ab"):
        volume, _ = ct_volume((20, 36, 36), np.random.default_rng(i))
        write_volume(tmp_path / f"{name}_0000.nii.gz", volume, (3.0, 1.5, 1.5))
    (tmp_path / "dataset.json").write_text(json.dumps(CT_JSON))
    return ["-m", str(run), "-q", str(tmp_path / "a"), "-k", str(tmp_path / "b_0000.nii.gz"), "-device", "cpu"]


@pytest.mark.parametrize("method", ["sam", "lapn"])
def test_main__prints_the_match_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    picture = tmp_path / "match.png"
    main([*_folder(tmp_path, method), "-p", "20", "18", "10", "--voxel", "-o", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "query  a: 30.00 27.00 30.00 mm, voxel 20.00 18.00 10.00"
    assert lines[1].startswith("match  b: ") and "similarity " in lines[1]
    assert lines[2].startswith("back   ") and lines[3] == f"drawn  {picture}" and picture.is_file()
    drawn = visualize.parser().parse_args(shlex.split(lines[5])[1:])
    assert (lines[4], drawn.kind, drawn.keys) == ("next:", "matches", [str(tmp_path / "b_0000.nii.gz")])
    assert (drawn.points, drawn.voxel, drawn.ras) == ([[20.0, 18.0, 10.0]], True, False)


def test_main__a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*_folder(tmp_path, "sam"), "-p", "-20", "18", "10"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the point -20 18 10 is not in") and error.count("\n") == 1

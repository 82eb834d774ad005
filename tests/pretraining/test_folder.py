from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nnssl.checkpoints.files import FINAL, LATEST
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.core.lock import Holder
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining import folder as module
from nnssl.pretraining.folder import CONFIG, Claim, check_output, claimed
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from tests.runs import CPU, make_setup

DESCRIBED = {"method": "mae", "configuration": "3d_fullres", "plans": "nnUNetPlans", "fold": "all", "options": {}}


@pytest.mark.parametrize("file", [CONFIG, LATEST, FINAL, None])
def test_check_output__a_run_may_be_replaced(tmp_path: Path, file: str | None) -> None:
    """A run that was killed before its first checkpoint has its config.json only."""
    folder = tmp_path / "fold_all"
    assert check_output(folder, resume=False, overwrite=True) is None
    folder.mkdir()
    if file == CONFIG:
        write_json(folder / CONFIG, DESCRIBED)
    elif file is not None:
        (folder / file).write_text("")
    assert check_output(folder, resume=False, overwrite=True) is None


def test_check_output__what_is_no_run_is_not_replaced(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "fold_all", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=CONFIG):
        check_output(folder, resume=False, overwrite=True)
    write_json(folder / CONFIG, {"model": "GPT"})
    with pytest.raises(UserError, match=r"method: is missing"):
        check_output(folder, resume=False, overwrite=True)
    folder.rename(elsewhere)
    write_json(elsewhere / CONFIG, DESCRIBED)
    folder.symlink_to(elsewhere)  # the run may be whole: it lies elsewhere
    with pytest.raises(UserError, match="is a link"):
        check_output(folder, resume=False, overwrite=True)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_output(folder, resume=False, overwrite=True)
    assert (elsewhere / "thesis.txt").is_file()


ELSEWHERE = Holder("gpu7", 12, "2026-01-01 00:00:00+00:00", "aa", "another machine", "1")


def test_claimed__one_run_at_a_time_and_the_next_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Dataset500_X" / "nnssl_vox2vec" / "fold_all"
    lock = folder.with_name(".fold_all.lock")
    with claimed(folder, patient=False) as claim:
        claim.check()
        assert lock.is_file() and not folder.exists()
    assert list(tmp_path.iterdir()) == []  # nothing was made of it
    folder.mkdir(parents=True)
    lock.write_text(json.dumps(asdict(ELSEWHERE)))
    with pytest.raises(UserError, match=r"fold_all is in use by .*gpu7.*2026-01-01"), claimed(folder, patient=False):
        pass
    said: list[str] = []
    monkeypatch.setattr(module, "REQUEUE_S", 5.0)
    monkeypatch.setattr(module.log, "info", said.append)
    monkeypatch.setattr("nnssl.core.lock.time.sleep", lambda _: lock.unlink())  # the other one ends meanwhile
    with claimed(folder, patient=True) as claim:
        claim.check()
    assert len(said) == 1 and "waiting" in said[0] and "gpu7" in said[0]
    assert not lock.exists() and folder.is_dir()


def test_run__one_that_lost_its_folder_stops_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = make_setup(tmp_path)
    after_step = Vox2vec.after_step
    with claimed(setup.folder, patient=False) as claim:

        def robbed(self: Vox2vec, step: int) -> None:
            after_step(self, step)
            if step == 4:  # in the second of two epochs
                claim.lock.write_text(json.dumps(asdict(ELSEWHERE)))

        monkeypatch.setattr(Vox2vec, "after_step", robbed)
        with pytest.raises(UserError, match=r"taken over by .*gpu7"):
            Pretraining(replace(setup, claim=claim), CPU).run()
    assert [row["epoch"] for row in read_rows(setup.folder / "metrics.jsonl")] == [1]
    assert json.loads(claim.lock.read_text())["host"] == "gpu7"  # still the other one's


def test_claim__a_lock_that_somebody_deleted_ends_nobody(tmp_path: Path) -> None:
    Claim(tmp_path / "fold_all", tmp_path / ".fold_all.lock", "mine").check()

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.pretrained import finished_pretrainings, read_pretrained
from nnssl.cli.pretrain import main
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.planning import load_plans
from nnssl.pretraining import folder as module
from nnssl.pretraining.folder import claimed
from nnssl.pretraining.metrics import read_rows
from tests.phantoms import write_ct_dataset, write_mr_dataset
from tests.preloaded import write_commands
from tests.pretrainings import finish_pretraining
from tests.runs import same_content

QUICK = ["-p", "nnsslPlans_tiny", "-device", "cpu", "-o", "num_epochs=2", "steps_per_epoch=2", "val_steps_per_epoch=1",
         "patch_size=16,16,16", "voxels_per_pair=64"]  # fmt: skip
RUN = "nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with a preprocessed dataset."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        _set_folders(patch, root)
        write_ct_dataset(root / "raw", 500, "Phantom", 4, shape=(20, 32, 32))
        plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    return root


@pytest.fixture
def folders(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folders with results of their own."""
    _set_folders(monkeypatch, prepared)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return prepared


def _set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    (root / "raw").mkdir(exist_ok=True)
    for name in ("raw", "preprocessed", "results"):
        patch.setenv(f"nnUNet_{name}", str(root / name))


def _catches_sigterm(process: int) -> bool:
    """Whether it has a handler by now; always where the system does not tell."""
    file = Path(f"/proc/{process}/status")
    if not file.exists():
        return True
    caught = next(line.split()[1] for line in file.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command says before it exits with 1."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def _told(output: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in output.splitlines()]


def _logged(folder: Path) -> list[str]:
    """Lines of the run's log without time and level."""
    lines = (folder / "pretraining_log.txt").read_text().splitlines()
    return [re.sub(r"^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", "", line) for line in lines]


def test_main__from_raw_volumes_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command in a fresh process: plan, preprocess, train; stopped, not begun anew, continued, finished."""
    _set_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_ct_dataset(tmp_path / "raw", 500, "Phantom", 4, shape=(20, 32, 32))
    command = [sys.executable, "-m", "nnssl.cli.pretrain", "-d", "500", "-m", "vox2vec", "-np", "1", *QUICK]
    command = [
        w.replace("num_epochs=2", "num_epochs=3").replace("steps_per_epoch=2", "steps_per_epoch=40") for w in command
    ]
    folder = tmp_path / "results" / "Dataset500_Phantom" / RUN
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not _catches_sigterm(process.pid) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()  # while it imports: there is nothing to save
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 75 and "SIGTERM received" in said and "--c" in said, said
    assert not folder.exists()

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 75, said + errors
    assert "SIGTERM received: the step" in said and "stopped after step" in said and "continue with --c" in said
    step = load_checkpoint(folder / "checkpoint_latest.pth")["step"]
    assert 40 <= step < 120

    assert "continue it with --c" in _fails(capsys, *command[3:])

    again = write_commands(tmp_path / "commands") / "nnssl_pretrain"
    done = subprocess.run([again, *command[3:], "--c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3  loss " in done.stdout and "data-wait" in done.stdout
    assert _logged(folder) == _told(said) + _told(done.stdout)  # not a word of the request that was refused
    assert re.search(r"time +about \d+ s for the \d+ steps left", done.stdout) and "\nfirst step" in done.stdout
    assert {f.name for f in folder.iterdir()} == {
        "checkpoint_latest.pth", "checkpoint_final.pth", "config.json", "plans.json", "dataset.json", "metrics.jsonl",
        "summary.json", "progress.png", "views.png", "pretraining_log.txt", "nnunet_weights.pth",
    }  # fmt: skip
    assert "for nnUNetv2_train -pretrained_weights: 62 tensors (351,152 values) pretrained" in done.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["patch_size"] == [16, 16, 16] and config["options"]["temperature"] == 0.1
    assert config["versions"]["torch"] and config["seed"] == 0 and len(config["held_out_cases"]) == 1
    assert [r["epoch"] for r in read_rows(folder / "metrics.jsonl")] == [1, 2, 3]
    checkpoint = load_checkpoint(folder / "checkpoint_final.pth")
    assert checkpoint["step"] == 120 and checkpoint["plans"]["plans_name"] == "nnsslPlans_tiny"
    assert checkpoint["fingerprint"]["spacings"] and len(checkpoint["train_cases"]) == 3
    assert checkpoint["orientation"] == "LPS"


def test_main__the_log_of_several_processes_is_what_the_terminal_shows(
    folders: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    main(["-d", "500", "-m", "vox2vec", *QUICK, "-num_gpus", "2"])
    said = _told(capfd.readouterr().out)
    assert _logged(out) == said
    assert "nothing to preprocess" in said[1] and any(line.startswith("first step") for line in said)
    assert any(line.startswith("finished") for line in said) and said[-1].startswith("  nnUNetv2_train")
    assert len(set(said)) == len(said)


def test_main__a_number_as_fold_takes_the_training_cases_of_the_splits(folders: Path) -> None:
    splits = folders / "preprocessed" / "Dataset500_Phantom" / "splits_final.json"
    cases = sorted(f.name[:-5] for f in splits.parent.glob("*_body/*.b2nd"))
    splits.write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    try:
        main(["-d", "500", "-m", "vox2vec", *QUICK, "-f", "0"])
    finally:
        splits.unlink()
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN.replace("fold_all", "fold_0")
    checkpoint = load_checkpoint(out / "checkpoint_final.pth")
    assert checkpoint["train_cases"] == [f"Dataset500_Phantom/{c}" for c in cases[2:]]
    assert checkpoint["val_cases"] == [f"Dataset500_Phantom/{c}" for c in cases[:2]]


def test_main__two_datasets_share_the_first_ones_plans(folders: Path) -> None:
    write_ct_dataset(folders / "raw", 501, "More", 2, shape=(20, 32, 32), spacing=(2.0, 2.0, 2.0), seed=9)
    main(["-d", "500", "501", "-m", "vox2vec", "-np", "1", *QUICK])
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    checkpoint = load_checkpoint(out / "checkpoint_final.pth")
    cases = checkpoint["train_cases"] + checkpoint["val_cases"]
    assert sorted(c.split("/")[0] for c in cases) == ["Dataset500_Phantom"] * 4 + ["Dataset501_More"] * 2
    shutil.rmtree(folders / "raw" / "Dataset501_More")


def test_main__continue_overwrite_and_pretrained(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["-d", "500", "-m", "vox2vec", *QUICK]
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    main([*run, "--c"])
    assert "a new one starts" in capsys.readouterr().out
    error = _fails(capsys, *run)
    assert "finished run" in error and "--overwrite" in error and (out / "checkpoint_final.pth").is_file()
    (out / "nnunet_weights.pth").unlink()
    for made_again in (True, False):
        main([*run, "--c"])
        said = capsys.readouterr().out
        assert "this run is finished" in said and ("nnunet_weights.pth" in said) == made_again
    assert (out / "nnunet_weights.pth").is_file()
    error = _fails(capsys, *run, "learning_rate=1", "--c")
    assert "learning_rate (0.0003 -> 1.0)" in error
    assert "give one of them" in _fails(capsys, *run, "--c", "--overwrite")
    (out / "checkpoint_final.pth").rename(out.parent / "kept.pth")
    inside = str(out / "checkpoint_latest.pth")
    assert "move the file" in _fails(capsys, *run, "--overwrite", "-pretrained", inside) and Path(inside).is_file()
    main([*run, "seed=1", "--overwrite", "-pretrained", str(out.parent / "kept.pth")])
    first, second = (load_checkpoint(p) for p in (out.parent / "kept.pth", out / "checkpoint_final.pth"))
    assert first["config"]["seed"] == 0 and second["config"]["seed"] == 1


def test_main__weights_and_datasets_of_another_modality(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = write_mr_dataset(folders / "raw", 502, "Heads", 1, num_channels=1)
    run = ["-m", "vox2vec", "-np", "1", *QUICK]
    plans = load_plans(folders / "preprocessed" / "Dataset500_Phantom", "nnsslPlans_tiny")
    assert plans is not None
    mr = {"channel_names": {"0": "T2"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    weights = finish_pretraining(tmp_path / "weights", "Dataset700_MR", plans, mr, orientation="RAS")
    start = ["-d", "500", *run, "-pretrained", str(weights / "checkpoint_final.pth")]
    try:
        said = _fails(capsys, "-d", "500", "502", *run)
        assert "MR (T1) in Dataset502_Heads" in said and "--allow_other_intensities" in said
        said = _fails(capsys, *start)
        assert "CT in Dataset500_Phantom, MR (T2) in the pretraining" in said
        assert not list((tmp_path / "results").rglob("*.pth"))
        main([*start, "-d", "500", "502", "--allow_other_intensities"])
        said = capsys.readouterr().out
        assert said.count("lets it pass") == 2 and "(RAS): most volumes of Dataset500_Phantom (LPS)" in said
    finally:
        shutil.rmtree(heads)


def test_main__a_damaged_checkpoint_is_said_and_the_good_one_offered(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["-d", "500", "-m", "vox2vec", *QUICK]
    main(run)
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    final, latest, best = (out / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    whole = final.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"garbage", whole[:100_000] + b"garbage" + whole[100_007:]):
        final.write_bytes(damage)
        error = _fails(capsys, *run, "--c")
        assert f"{final} is damaged" in error and "checkpoint_latest.pth beside it is whole (step 4)" in error
        assert final.read_bytes() == damage  # nothing is taken or moved in silence
    subprocess.run(error.split("type: ")[1].split(";")[0], shell=True, check=True)
    main([*run, "--c"])
    assert same_content(load_checkpoint(final)["method_state"], load_checkpoint(latest)["method_state"])

    shutil.copy(latest, best)
    for file in (final, latest):
        file.write_bytes(b"PK")
    error = _fails(capsys, *run, "--c")
    assert "checkpoint_best.pth beside it is whole" in error
    subprocess.run(error.split("type: ")[1].split(";")[0], shell=True, check=True)
    main([*run, "--c"])
    assert load_checkpoint(final)["step"] == 4
    final.unlink()
    best.unlink()
    latest.write_bytes(b"")
    assert "--overwrite" in _fails(capsys, *run, "--c")
    assert not (out.parent / ".fold_all.lock").exists()


def test_main__a_run_in_use_is_refused(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["-d", "500", "-m", "vox2vec", *QUICK]
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    monkeypatch.setattr(module, "REQUEUE_S", 0.5)
    with claimed(out, patient=False):
        for more in ([], ["--c"], ["--overwrite"]):
            error = _fails(capsys, *run, *more)
            assert "in use by process" in error and str(os.getpid()) in error
        assert not out.exists()
    main(run)
    (out.parent / ".fold_all.lock").write_text("of somebody else")
    main([*run, "--c"])  # finished: nothing is written
    assert "this run is finished" in capsys.readouterr().out


def test_main__mistakes_are_one_sentence_and_leave_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = ["-d", "500", "-m", "vox2vec"]
    tiny = [*run, "-p", "nnsslPlans_tiny", "-device", "cpu"]
    assert "choose one of: vox2vec" in _fails(capsys, "-d", "500", "-m", "simsiam", *QUICK)
    assert "'epochs'; did you mean num_epochs?" in _fails(capsys, *tiny, "-o", "epochs=3")
    assert "Dataset500_Phantom" in _fails(capsys, "-d", "77", "-m", "vox2vec", *QUICK)
    assert "3d_fullres" in _fails(capsys, *tiny, "-c", "3d_lowres")
    assert "3d_fullres" in _fails(capsys, *tiny, "-c", "2d")
    assert "16,16" in _fails(capsys, *tiny, "-o", "patch_size=16,15,16")
    assert "-device cpu" in _fails(capsys, *run, "-p", "nnsslPlans_tiny", "-device", "cuda")
    assert "-device cpu" in _fails(capsys, *run, "-p", "nnsslPlans_tiny", "-num_gpus", "2")
    assert "nnsslPlans_voco, nnsslPlans_vox2vec" in _fails(capsys, *run, "-p", "noPlans", "-device", "cpu")
    assert "splits_final.json" in _fails(capsys, *tiny, "-f", "0")
    assert "give all or a number" in _fails(capsys, *tiny, "-f", "7x")
    assert "one voxel per step" in _fails(capsys, *tiny, "-o", "batch_size=1", "voxels_per_pair=1")
    with monkeypatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "abc")
        assert "export nnUNet_n_proc_DA=8" in _fails(capsys, *tiny)
    assert "there is no checkpoint" in _fails(capsys, *tiny, "-pretrained", "/none.pth")
    assert "batch_size=3" in _fails(capsys, *tiny, "-num_gpus", "3")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "are free; make room" in _fails(capsys, *tiny)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.delenv("nnUNet_results")
    assert "export nnUNet_results=" in _fails(capsys, *tiny)
    assert not list(folders.rglob("nnssl_vox2vec*"))


def test_main__continues_a_run_of_an_earlier_version(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoint has no health, cost and probe, its rows no cost, and its options not all of today's."""
    run = ["-d", "500", "-m", "vox2vec", *QUICK]
    main(run)
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    final = load_checkpoint(out / "checkpoint_final.pth")
    content = {k: v for k, v in final.items() if k not in ("health_state", "cost_state", "probe_state")}
    del content["config"]["exclude_radius_mm"], content["config"]["noise_sigma_hu"]  # the latter was a constant
    # as after its first epoch: its second one is done again
    content.update(epoch=1, step=2, train_means={"sums": {}, "count": 0})
    torch.save(content, out / "checkpoint_latest.pth")
    (out / "checkpoint_final.pth").unlink()
    rows = read_rows(out / "metrics.jsonl")
    of_then = ("epoch", "step", "loss", "val_loss", "embedding_std", "val_embedding_std", "embedding_dim",
               "learning_rate", "samples_per_second", "data_wait", "memory_gib", "seconds")  # fmt: skip
    (out / "metrics.jsonl").write_text(json.dumps({k: rows[0][k] for k in of_then}) + "\n")
    capsys.readouterr()
    assert "noise_sigma_hu ([0.0, 30.0] -> [0.0, 10.0])" in _fails(capsys, *run, "noise_sigma_hu=0,10", "--c")
    main([*run, "--c"])
    said = capsys.readouterr()
    assert "goes on with exclude_radius_mm=0.0; " in said.out + said.err
    assert load_checkpoint(out / "checkpoint_final.pth")["step"] == 4
    assert [r["epoch"] for r in read_rows(out / "metrics.jsonl")] == [1, 2]
    assert read_pretrained(out / "checkpoint_final.pth").method == "vox2vec"


def test_main__volumes_without_masks_are_refused_under_torchrun(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    error = _fails(capsys, "-d", "500", "-m", "vox2vec", "-p", "nnUNetPlans", "-device", "cpu")
    assert "run nnssl_plan_and_preprocess -d 500 -p nnUNetPlans first" in error


def test_main__probe_on_a_labelled_dataset(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_dataset(folders / "raw", 17, "Organs", 3, shape=(20, 32, 32), labelled=True)
    run = ["-d", "500", "-m", "vox2vec", *QUICK]
    probe = ["-probe", "17", "-probe_every", "1", "-np", "1"]
    out = Path(os.environ["nnUNet_results"]) / "Dataset500_Phantom" / RUN
    try:
        assert "-probe_every says how often" in _fails(capsys, *run, "-probe_every", "2")
        assert "Dataset500_Phantom has no labels" in _fails(capsys, *run, "-probe", "500")
        assert not out.exists()
        main([*run, *probe])
        said = capsys.readouterr().out
        assert "probe on Dataset017_Organs: the heads learn" in said and "% of the time" in said
        rows = read_rows(out / "metrics.jsonl")
        assert all(0 <= row[f"probe_{head}_dice_{label}"] <= 1
                   for row in rows for head in ("linear", "nonlinear") for label in ("liver", "spine"))  # fmt: skip
        config = json.loads((out / "config.json").read_text())
        assert config["probe"]["dataset"] == "Dataset017_Organs" and len(config["probe"]["held_out_cases"]) == 1
        best, final = (load_checkpoint(out / f"checkpoint_{name}.pth") for name in ("best", "final"))
        assert best["method_state"].keys() == final["method_state"].keys()
        # what reads pretrainings takes the final checkpoint, and its probe disturbs nothing
        (found,) = finished_pretrainings(Path(os.environ["nnUNet_results"]), "vox2vec", "Dataset500_Phantom")
        assert found.name == "checkpoint_final.pth" and read_pretrained(found).method == "vox2vec"
        assert "began with -probe Dataset017_Organs and would go on without" in _fails(capsys, *run, "--c")
        assert "-probe_every of the probe" in _fails(capsys, *run, *probe[:2], "--c")
        main([*run, *probe, "--c"])
        assert "this run is finished" in capsys.readouterr().out
    finally:
        shutil.rmtree(folders / "raw" / "Dataset017_Organs")
        shutil.rmtree(folders / "preprocessed" / "Dataset017_Organs", ignore_errors=True)

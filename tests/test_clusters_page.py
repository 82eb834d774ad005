"""The job scripts of docs/clusters.md with a pretended Slurm, and torchrun on two pretended machines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.checkpoints.files import load_checkpoint
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.phantoms import write_ct_dataset

ROOT = Path(__file__).parent.parent
SCRIPTS = [part.split("```")[0] for part in (ROOT / "docs" / "clusters.md").read_text().split("```bash\n")[1:]]
TRAINING = ["-d", "500", "-m", "vox2vec", "-p", "nnsslPlans_tiny", "-device", "cpu", "-o", "num_epochs=1",
            "steps_per_epoch=2", "val_steps_per_epoch=0", "patch_size=16,16,16", "voxels_per_pair=64"]  # fmt: skip
RUN = "Dataset500_Phantom/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all"
# runs the command once a task, as `srun` does, and ends with the highest code
SRUN = """
export SLURM_LOCALID=0
SLURM_PROCID=1 "$@" & other=$!
SLURM_PROCID=0 "$@"; first=$?
wait $other; second=$?
exit $((first > second ? first : second))
"""


def environment(folder: Path, commands: dict[str, str]) -> dict[str, str]:
    """Of a job in which these commands are pretended."""
    for name, lines in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2",
            "SLURM_JOB_NODELIST": "node[1-2]", "PYTHONPATH": str(ROOT), "nnUNet_n_proc_DA": "0",
            "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip


def job(folder: Path, script: str) -> Path:
    """The script as a file."""
    file = folder / "pretrain.sbatch"
    file.write_text(script)
    return file


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders with a preprocessed dataset; returns that of the run."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    write_ct_dataset(tmp_path / "raw", 500, "Phantom", 2, shape=(20, 32, 32))
    plan_and_preprocess([500], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    return tmp_path / "results" / RUN


@pytest.mark.parametrize(("code", "queued"), [(75, True), (0, False), (1, False)])
@pytest.mark.parametrize("script", SCRIPTS, ids=["one machine", "several"])
def test_job_script__is_queued_again_after_a_saved_interruption_only(
    tmp_path: Path, script: str, code: int, queued: bool
) -> None:
    said = tmp_path / "said"
    commands = {"nnssl_pretrain": f'echo "$@" > {tmp_path}/ran; exit {code}', "srun": 'exec "$@"',
                "scontrol": f'[ "$1" = show ] && echo node1 || echo "$@" > {said}'}  # fmt: skip
    done = subprocess.run(["bash", str(job(tmp_path, script)), "-d", "500", "-m", "mae"],
                          env=environment(tmp_path, commands), timeout=300, check=False)  # fmt: skip
    assert done.returncode == code
    assert (tmp_path / "ran").read_text() == "-d 500 -m mae --c\n"
    assert "--signal=USR1@300" in script and "--requeue" in script
    assert said.exists() == queued and (not queued or said.read_text() == "requeue 7\n")


@pytest.mark.slow
def test_job_script__processes_of_two_machines_train_together(tmp_path: Path, prepared: Path) -> None:
    python = f'exec {sys.executable} -m nnssl.cli.pretrain "$@"'
    variables = environment(tmp_path, {"nnssl_pretrain": python, "srun": SRUN, "scontrol": "echo 127.0.0.1"})
    variables["SLURM_JOB_ID"] = str(free_port() - 20000)
    done = subprocess.run(["bash", str(job(tmp_path, SCRIPTS[1])), *TRAINING], timeout=300,
                          env=variables, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    check(prepared)


@pytest.mark.slow
def test_torchrun__on_two_machines(prepared: Path, tmp_path: Path) -> None:
    port, variables = free_port(), environment(tmp_path, {})
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
               "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"]  # fmt: skip
    nodes = [
        subprocess.Popen([*command, "--node_rank", str(node), "-m", "nnssl.cli.pretrain", *TRAINING], env=variables)
        for node in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    check(prepared)


def check(run: Path) -> None:
    """The run had two processes, one of which wrote."""
    assert load_checkpoint(run / "checkpoint_final.pth")["step"] == 2
    assert "2 processes" in (run / "pretraining_log.txt").read_text()


def free_port() -> int:
    """One between 20000 and 29999."""
    for port in range(20000 + os.getpid() % 9000, 30000):
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("all ports are taken")

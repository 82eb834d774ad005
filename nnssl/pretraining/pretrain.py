"""`nnssl.pretrain`: from dataset ids to a finished run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from nnssl.checkpoints.files import FINAL, NNUNET_WEIGHTS
from nnssl.core.distributed import rank, resolve_device, started_by_torchrun
from nnssl.core.system import is_first_started
from nnssl.data.folders import explained_errors_of
from nnssl.data.pool import default_processes
from nnssl.data.prepare_resized import prepare_resized_bodies
from nnssl.pretraining.alignment import prepare_embeddings
from nnssl.pretraining.doubts import doubts
from nnssl.pretraining.finished import FinishedRun, finished_run
from nnssl.pretraining.folder import WARNINGS, earlier_warnings, held, open_folder
from nnssl.pretraining.launch import joined, launch, said_by
from nnssl.pretraining.request import Request
from nnssl.pretraining.run_log import open_run_log, run_log, warnings_so_far
from nnssl.pretraining.setup import Setup
from nnssl.pretraining.weights import write_nnunet_weights

log = logging.getLogger("nnssl")


@run_log()
def pretrain(
    dataset_ids: Sequence[int | str],
    method: str,
    configuration: str = "3d_fullres",
    plans: str = "nnUNetPlans",
    fold: str = "all",
    device: str | None = None,
    num_gpus: int = 1,
    continue_run: bool = False,
    overwrite: bool = False,
    options: Sequence[str] = (),
    pretrained: str | Path | None = None,
    num_processes: int | None = None,
    alignment: str | Path | None = None,
    probe: int | str | None = None,
    probe_every: int | None = None,
    allow_other_intensities: bool = False,
) -> FinishedRun:
    """Pretrain on nnU-Net datasets, planning and preprocessing them first where that is missing.

    Args:
        dataset_ids: ids or names; the first one's plans and results folder are used.
        method: name of the method, see `nnssl.methods.registry`.
        configuration: a 3D configuration of the plans.
        plans: plans of the first dataset, or a preset such as nnsslPlans_vox2vec.
        fold: "all" holds 5 % of the cases out; a number takes the fold of splits_final.json.
        device: "cuda" or "cpu"; None: cuda where PyTorch sees a card.
        num_gpus: processes on this machine (on the CPU too); under torchrun, torchrun's count applies.
        continue_run: go on with an interrupted run; start anew where there is none.
        overwrite: replace an earlier run.
        options: `key=value` for the method's hyper-parameters.
        pretrained: RUN to start from, weights only (`nnssl.checkpoints.runs.checkpoint_of`); `random` is no RUN.
        num_processes: for preprocessing; None: nnU-Net's default.
        alignment: for methods that pair volumes, see `nnssl.pretraining.alignment.choose_aligner`.
        probe: labelled dataset that the features are probed on during the run, see `nnssl.pretraining.probe_data`.
        probe_every: epochs between the probe's evaluations; None: at most 20 in the run, and as its cost allows.
        allow_other_intensities: take further datasets, a probe, weights or an encoder of another modality than the
            first dataset's (`nnssl.data.guard`).

    Returns:
        The run's folder, with checkpoint_final.pth and nnunet_weights.pth in it: a path whose `next` holds the lines to
        type next, as they are printed.

    Raises:
        UserError: any mistake in the request, found before anything is written, or a run that cannot go on.
        UserError: another process writes to the run's folder; `continue_run` waits for it for a while.
        Interrupted: SIGTERM or SIGUSR1; the run is saved.
    """
    device = resolve_device(device, num_gpus)
    request = Request(dataset_ids, method, configuration, plans, fold, device, num_gpus, continue_run, overwrite,
                      options, pretrained, num_processes, alignment, probe, probe_every,
                      allow_other_intensities)  # fmt: skip
    prepared = request.prepare()
    folder = request.folder(prepared)
    with held(folder, continue_run, overwrite) as claim, joined(device):
        setup = request.resolve(prepared, folder, claim)
        _train(request, setup)
    return finished_run(setup, prepared.results, device)


def _train(request: Request, setup: Setup) -> None:
    """To the end of the run; of a finished one only what is missing."""
    if setup.is_finished:
        log.info(f"this run is finished: {setup.folder / FINAL}")
        if not (setup.folder / NNUNET_WEIGHTS).is_file():
            _for_stock_trainers(setup.folder)
        return
    _prepare_bodies(setup, request)
    prepare_embeddings(setup, request.device, not started_by_torchrun(), request.allow_other_intensities)
    if is_first_started():
        before = earlier_warnings(setup.folder) if setup.resume else []
        for sentence in [] if setup.resume else doubts(setup):
            log.warning(sentence)
        described = {**setup.described(request.device), WARNINGS: list(dict.fromkeys([*before, *warnings_so_far()]))}
        open_folder(setup.folder, request.overwrite, described, setup.plans, setup.dataset_json)
        open_run_log(setup.folder)
    launch(setup, request.device, request.num_gpus)
    _for_stock_trainers(setup.folder)
    log.info(f"finished: {setup.folder / FINAL}")


def _prepare_bodies(setup: Setup, request: Request) -> None:
    largest = request.method_class.resized_body(setup.config)
    if largest is not None:
        workers = 1 if started_by_torchrun() else default_processes(request.num_processes)
        with said_by(rank()), explained_errors_of(setup.train.folders[0].images.parents[1]):
            prepare_resized_bodies((setup.train, setup.val), largest, workers)


def _for_stock_trainers(folder: Path) -> None:
    if is_first_started():
        write_nnunet_weights(folder)

"""The tables of docs/results.md as data."""

from __future__ import annotations

from dataclasses import replace

from pays_table import DECODER, ENCODER, RANDOM, Row, Settings, Table

# Of tables whose trainings all began with the same state of the generators.
_SAME_NUMBERS = (
    "Pretrained and trained on one card (bf16). All trainings drew fresh weights and batches from the same random "
    "numbers: rows are compared on the same draws, and the spread over seeds is that of the labelled cases and of the "
    "pretrainings."
)
_ONE_RATE = {"nnssl_output_factor": "1"}  # as the tables were made, when that was the only one


def of_length(epochs: int, rate: str | None = None) -> dict[str, str]:
    """Variables of a training of `epochs` of 40 steps, tested without mirroring; `rate` None for the trainer's."""
    length = {"num_epochs": epochs, "num_iterations_per_epoch": 40, "num_val_iterations_per_epoch": 2}
    rates = {} if rate is None else {"nnssl_initial_lr": rate, **_ONE_RATE}
    return {f"nnssl_{key}": str(value) for key, value in length.items()} | rates | {"nnssl_test_mirroring": "0"}


_MAE = "batch_size=4 mask_block=8,8,8 steps_per_epoch=40 warmup_steps=20 val_steps_per_epoch=2"
# 10 epochs that take each method about the same time on one core; with the crops and the rate of `_with_crops`.
_OF_METHOD = {
    "vox2vec": "batch_size=4 steps_per_epoch=24 val_steps_per_epoch=2",
    "pimpic": "crops=12 steps_per_epoch=60 val_steps_per_epoch=2",
    "voco": "batch_size=2 steps_per_epoch=24 warmup_steps=20 val_steps_per_epoch=2",
    "lapn": "batch_size=4 steps_per_epoch=16 val_steps_per_epoch=2",
    "mae": _MAE,
    "alice": "batch_size=4 mask_block=8,8,8 steps_per_epoch=32 warmup_steps=20 val_steps_per_epoch=6",
    "unet_mae": f"{_MAE} optimiser=adamw",  # SGD at 1e-3 would not get anywhere in 400 steps
}
# The probe's heads learn too: its curves on networks that stay random, by the method that is run at a rate of nothing.
UNTRAINED = {"random_decoder": "unet_mae", "random_encoder": "mae"}
FLAGS = {"alice": ("-alignment", "position")}  # of nnssl_pretrain, besides -o


def _with_crops(crops: str) -> dict[str, str]:
    return {m: f"patch_size={crops} {options} num_epochs=10 learning_rate=1e-3" for m, options in _OF_METHOD.items()}


PRETRAINED = ("vox2vec", "voco", "pimpic", "alice", "lapn", "mae", "unet_mae")
_LEADERS = ("vox2vec", "voco", "pimpic")  # ahead of random weights after 320 steps, or with the best features
_UNFINISHED = ("unet_mae", "mae", "lapn", "vox2vec")  # loss still falling at the end of the pretraining
_FINETUNE = "nnUNetTrainer_SSLUNetFinetune"
_SCRATCH = "nnUNetTrainer_SSLUNetScratch"
_SHORT, _LONG = 8, 30  # epochs


def _finetuning() -> tuple[Row, ...]:
    """The whole network from every start, and from scratch by nnU-Net's own recipe; both also until they converge."""
    short, long = of_length(_SHORT, "1e-3"), of_length(_LONG, "1e-3")
    return (
        Row(RANDOM, _FINETUNE, RANDOM, short),
        Row("scratch", _SCRATCH, None, of_length(_SHORT)),
        *(Row(method, _FINETUNE, method, short) for method in PRETRAINED),
        Row("random_long", _FINETUNE, RANDOM, long),
        Row("scratch_long", _SCRATCH, None, of_length(_LONG)),
        *(Row(f"{method}_long", _FINETUNE, method, long) for method in _LEADERS),
    )


def _changed() -> tuple[Row, ...]:
    """One thing of the fine-tuning changed: its rate, that of the output layers, or what is frozen for a quarter."""
    rows = [Row(RANDOM, _FINETUNE, RANDOM, of_length(_SHORT, "1e-3"))]
    for name, rate in (("slow", "3e-4"), ("fast", "3e-3")):
        rows += [Row(f"{start}_{name}", _FINETUNE, start, of_length(_SHORT, rate)) for start in (RANDOM, *_LEADERS)]
    for start, part in zip(_LEADERS, ("body", "encoder", "encoder"), strict=True):
        frozen = {"nnssl_freeze": part, "nnssl_freeze_steps": "80"}
        rows.append(Row(f"{start}_frozen_first", _FINETUNE, start, of_length(_SHORT, "1e-3") | frozen))
    ten = of_length(_SHORT, "1e-3") | {"nnssl_output_factor": "10"}
    rows += [Row(f"{start}_output", _FINETUNE, start, ten) for start in (RANDOM, *PRETRAINED)]
    return tuple(rows)


def _more() -> tuple[Row, ...]:
    """Fine-tuning and linear probes of pretrainings that were stopped while their losses still fell."""
    short, probe = of_length(_SHORT, "1e-3"), of_length(_SHORT, "1e-2")
    return (
        Row(RANDOM, _FINETUNE, RANDOM, short),
        *(Row(method, _FINETUNE, method, short) for method in _UNFINISHED),
        *(Row(f"{method}_linear", "nnUNetTrainer_SSLLinearProbe", method, probe) for method in _UNFINISHED),
    )


def _probes(head: str) -> tuple[Row, ...]:
    """A head on the frozen network; random networks with the levels of either kind."""
    trainer, length = f"nnUNetTrainer_SSL{head}Probe", of_length(_SHORT, "1e-2")
    return (
        Row("random_decoder", trainer, RANDOM, length, DECODER),
        Row("random_encoder", trainer, RANDOM, length, ENCODER),
        *(Row(method, trainer, method, length) for method in PRETRAINED),
    )


def _lapn(target: str) -> tuple[Row, ...]:
    """LAPN's workflow: encodings, the teacher that has them, its students, and the student's network without a teacher.

    `student_alone` has the students' recipe, `student_scratch` nnU-Net's. The teacher of `student_of_student` is
    `student_alone`, which has no encodings.

    Where several jobs share the table, a student may come before its teacher, and fails until that is trained.
    """
    length, scratch = of_length(_SHORT, "1e-3"), "nnUNetTrainer_LAPNScratch"

    def taught_by(row: str, trainer: str) -> Settings:
        folder = (
            f"{{out}}/{target}/nnUNet_results/{row}/{{dataset}}/{trainer}__{{plans}}From{{source}}_lapn__3d_fullres"
        )
        return {**length, "nnssl_teacher": folder}

    taught, student = taught_by("lapn_teacher", "nnUNetTrainer_LAPN"), "nnUNetTrainer_Distill"
    return (
        Row("student_alone", scratch, None, length, "lapn"),
        Row("student_scratch", "nnUNetTrainer_PartialLabels", None, of_length(_SHORT), "lapn"),
        Row("lapn_teacher", "nnUNetTrainer_LAPN", "lapn", length),
        Row("student_distilled", student, None, taught, "lapn"),
        Row("student_of_student", student, None, taught_by("student_alone", scratch), "lapn"),
        Row("student_distilled_unlabelled", student, None, {**taught, "nnUNet_raw": "{out}/raw"}, "lapn", "Unlabelled"),
    )


_HIPPOCAMPUS = Table(
    name="017",
    title="Hippocampus: the whole network is fine-tuned",
    source=502,
    target=17,
    preset="nnsslPlans_tiny",
    plans="nnsslPlans_tiny32",
    patch=(32, 32, 32),
    pretrainings=_with_crops("16,32,32"),
    rows=_finetuning(),
    cases=(4, 30),
    test="40",
    floors={"anterior": 0.74, "posterior": 0.71},
    floor="mean shape",
    note="100 other volumes of the same kind (MR, about 35 x 51 x 36 voxels of 1 mm) are pretrained on.",
)
_OF_CARD = "patch_size=16,32,32 steps_per_epoch=60 val_steps_per_epoch=2 num_epochs=10 learning_rate=1e-3"
_HIPPOCAMPUS_ON_A_CARD = replace(
    _HIPPOCAMPUS,
    name="017_nnunet",
    title="Hippocampus: nnU-Net's own plans, on a card",
    preset="nnUNetPlans",
    plans="nnUNetPlans",
    note=f"{_HIPPOCAMPUS.note} Network, patch and batch are nnU-Net's own: add `-device cuda`. {_SAME_NUMBERS}",
    patch=None,
    probed=False,
    pretrainings={
        "vox2vec": f"{_OF_CARD} batch_size=8",
        "pimpic": f"{_OF_CARD} crops=24",
        "unet_mae": f"{_OF_CARD} batch_size=8 mask_block=8,8,8 warmup_steps=20 optimiser=adamw",
    },
    rows=tuple(
        Row(start, _FINETUNE, start, {k: v for k, v in of_length(_SHORT).items() if "mirroring" not in k})
        for start in (RANDOM, "vox2vec", "pimpic", "unet_mae")
    ),
)
_HEADS = Table(
    name="018",
    title="Heads: the whole network is fine-tuned",
    source=18,
    target=18,
    preset="nnsslPlans_tiny",
    plans="nnsslPlans_tiny",
    pretrainings=_with_crops("32,48,48"),
    rows=_finetuning(),
    cases=(2, 12),
    test="fold_0",
    fold="0",
    note=f"The 12 training heads are pretrained on without labels, the 4 test heads by nobody. {_SAME_NUMBERS}",
)
_SARCOMAS = (
    "24 other CTs of the same source are pretrained on. The volumes of 501 lie around their tumours (a centred "
    "ellipsoid reaches .63); `pays_crops.py` cuts them off centre, as dataset 511."
)
_SARCOMA = Table(
    name="501",
    title="Sarcoma in CT: the whole network is fine-tuned",
    source=500,
    target=511,
    cut_from=501,
    preset="nnsslPlans_tiny",
    plans="nnsslPlans_tiny",
    pretrainings=_with_crops("32,48,48"),
    rows=_finetuning(),
    cases=(2, 4),
    test="67",
    probed=False,
    floors={"tumour": 0.41},
    floor="a centred ellipsoid",
    note=f"{_SARCOMAS} After 320 steps no row reaches the floor: read the leads as a beginning.",
)


def _like(table: Table, ending: str, title: str, rows: tuple[Row, ...]) -> Table:
    subject = table.title.split(":")[0]
    return replace(table, name=f"{table.name}_{ending}", title=f"{subject}: {title}", rows=rows)


_LINEAR, _NONLINEAR = "a linear head on the frozen network", "a non-linear head on the frozen network"
_ALL = (
    _HIPPOCAMPUS,
    _like(_HIPPOCAMPUS, "linear", _LINEAR, _probes("Linear")),
    replace(_like(_HIPPOCAMPUS, "nonlinear", _NONLINEAR, _probes("")), note=f"{_HIPPOCAMPUS.note} {_SAME_NUMBERS}"),
    replace(
        _like(_HIPPOCAMPUS, "changed", "other rates, and frozen first", _changed()),
        note=f"{_HIPPOCAMPUS.note} `random` is the same training as in the first table.",
    ),
    replace(_like(_HIPPOCAMPUS, "more", "four times the pretraining", _more()), cases=(4,), times_epochs=4),
    _like(_HIPPOCAMPUS, "lapn", "encodings, teacher and students of LAPN", _lapn("017_lapn")),
    _HIPPOCAMPUS_ON_A_CARD,
    _HEADS,
    _like(_HEADS, "linear", _LINEAR, _probes("Linear")),
    _SARCOMA,
    replace(_like(_SARCOMA, "linear", _LINEAR, _probes("Linear")), note=_SARCOMAS),
)
TABLES = {table.name: table for table in _ALL}

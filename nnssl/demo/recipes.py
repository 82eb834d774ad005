"""What the demo does with each method: options of a short pretraining, and how the weights are put to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

# A few minutes on two cores for every method. So short a training needs a higher rate than the papers' 100,000 steps.
_PRETRAINING = ("num_epochs=7", "val_steps_per_epoch=2")
_OF_METHOD = {
    "vox2vec": ("steps_per_epoch=40", "learning_rate=1e-3"),
    "voco": ("steps_per_epoch=30", "learning_rate=3e-3", "warmup_steps=20", "batch_size=4", "crops=4", "grid=1,3,3",
             "patch_size=16,32,32", "projection_dim=128", "flip_probability=0", "turn_probability=0"),
    "pimpic": ("steps_per_epoch=20", "learning_rate=1e-3", "crops=12", "batch_size=1"),
    "lapn": ("steps_per_epoch=28", "learning_rate=2e-3", "key_momentum=0.99", "queue_size=8192"),
    "sam": ("steps_per_epoch=20", "warmup_steps=20"),
    # at the papers' weights so few steps only make the tokens of a crop alike
    "alice": ("steps_per_epoch=27", "learning_rate=1e-3", "warmup_steps=20", "across_weight=0.1", "within_weight=0.1"),
    "mae": ("steps_per_epoch=50", "learning_rate=1e-3", "warmup_steps=20"),
    "simclr": ("steps_per_epoch=90", "learning_rate=1e-3"),
    "unet_mae": ("steps_per_epoch=70", "optimiser=adamw", "learning_rate=3e-3", "warmup_steps=20", "mask_block=8,8,8"),
    "volumefusion": ("steps_per_epoch=50",),
}  # fmt: skip
_OF_OTHERS = ("steps_per_epoch=50", "learning_rate=1e-3")
_FLAGS = {"alice": ("-alignment", "position")}  # else it needs a pretraining with lapn or sam first


@dataclass(frozen=True)
class Head:
    """How a training with few labels uses a backbone; the same for pretrained and random weights.

    Args:
        name: in sentences, after "with".
        trainer: class for nnUNetv2_train.
        variables: length and rate of the training.
        title: of the training; `{weights}` is "pretrained" or "random".
        why: the reason for this head, a sentence.
    """

    name: str
    trainer: str
    variables: Mapping[str, str]
    title: str
    why: str


def _length(epochs: int, steps: int, rate: str) -> dict[str, str]:
    return {
        "nnssl_num_epochs": str(epochs),
        "nnssl_num_iterations_per_epoch": str(steps),
        "nnssl_num_val_iterations_per_epoch": "2",
        "nnssl_initial_lr": rate,
        "nnssl_test_mirroring": "0",  # an eighth of the predictions
    }


LINEAR = Head(
    "a linear head on the frozen network",
    "nnUNetTrainer_SSLLinearProbe",
    _length(8, 50, "0.01"),
    "nnU-Net's own training of a linear head on the frozen {weights} network, with few labels",
    "so few steps show what the maps of {method} hold already; fine-tuning the whole network needs many more",
)
NONLINEAR = Head(
    "a non-linear head on the frozen network",
    "nnUNetTrainer_SSLProbe",
    _length(6, 50, "0.01"),
    "nnU-Net's own training of a non-linear head on the frozen {weights} network, with few labels",
    "so few steps show what the maps of {method} hold already, and after so short a pretraining a linear head reads "
    "little of them; fine-tuning the whole network needs many more",
)
_LONGER = replace(NONLINEAR, variables=_length(10, 50, "0.01"))


def head_of(method: str) -> Head:
    """The head that suits the maps of a method: linear for vox2vec, as in its paper, whose every level it reads.

    It learns longer with simclr, which showed no gain after 300 steps.
    """
    return {"vox2vec": LINEAR, "simclr": _LONGER}.get(method, NONLINEAR)


def pretraining_options(method: str, seed: int) -> tuple[str, ...]:
    """Flags of `nnssl_pretrain` besides the dataset, the method, the plans and the device."""
    return (*_FLAGS.get(method, ()), "-o", *_PRETRAINING, *_OF_METHOD.get(method, _OF_OTHERS), f"seed={seed}")

"""Optimiser, learning rate and precision, as a method's hyper-parameters name them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from nnssl.methods.base import MethodConfig
from nnssl.networks.pyramid import FeaturePyramid

_POLYNOMIAL = 0.9  # nnU-Net's exponent


def build_optimiser(config: MethodConfig, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Adam, AdamW or SGD over the parameters that need a gradient.

    `sgd` is without Nesterov's momentum, as SAM has it (methods.md 5.4), `nesterov` with it. A run that began with it
    keeps it, by its state. On a CUDA card all parameters are updated by one fused kernel, which with fp16 leaves a step
    out without the host's help.
    """
    trainable = [p for p in parameters if p.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    fused = True if all(p.device.type == "cuda" for p in trainable) else None
    if config.optimiser in ("sgd", "nesterov"):
        nesterov = config.optimiser == "nesterov"
        return optim.SGD(trainable, rate, config.momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
    kind = optim.Adam if config.optimiser == "adam" else optim.AdamW
    return kind(trainable, rate, config.betas, weight_decay=decay, amsgrad=config.amsgrad, fused=fused)


def load_optimiser(optimiser: optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser of `build_optimiser` on any device, whose matters fusing and layout are."""
    groups = [{**group, "fused": optimiser.defaults["fused"]} for group in state["param_groups"]]
    optimiser.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimiser.state.items():  # a fused kernel asks for equal strides
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter).copy_(value)


def compile_backbones(method: nn.Module) -> None:
    """Compile the forward passes of student and teacher if the variable of nnU-Net's trainers says so.

    Losses and augmentation stay as they are. The names in the state dict do not change.
    """
    if os.environ.get("nnUNet_compile", "").lower() in ("true", "1", "t"):
        for module in method.modules():
            if isinstance(module, FeaturePyramid):
                module.compile()


def learning_rate(config: MethodConfig, step: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up from 0, then constant, or towards 0 after the last step.

    `cosine` falls by a half cosine, `poly` by nnU-Net's polynomial, (1 - progress)^0.9.

    The first step of a warm-up has a rate of 0, as in the authors' codes (methods.md 2.4).
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    total = config.num_epochs * config.steps_per_epoch
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    if config.schedule == "poly":
        return config.learning_rate * (1 - min(1.0, progress)) ** _POLYNOMIAL
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def choose_precision(config: MethodConfig, device: torch.device) -> torch.dtype:
    """Type of the autocast; `auto` is bfloat16 where the card has it, else float16, and float32 on the CPU."""
    named = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if config.precision != "auto":
        return named[config.precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

"""Files of weights as their authors publish them, of small networks, and what every family must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnssl.features.model import load_pretrained
from nnssl.interchange.writing import ImportedRun, import_weights


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with all floating-point values of its state random, in evaluation mode; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return network.eval()


def saved(content: Any, file: Path) -> Path:
    """Written by torch, whatever the file is called."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return file


def imported(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch, dataset: str = "Dataset900_Public",
             **options: Any) -> ImportedRun:  # fmt: skip
    """Imported into `root/results`, with nothing else there."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
    return import_weights(source, dataset, **options)


def assert_same_maps(
    run: Path, source: Callable[[Tensor], Sequence[Tensor]], size: Sequence[int], axes: str = "zyx", channels: int = 1
) -> None:
    """The imported backbone gives the maps of the source network, finest first, on the same image."""
    model = load_pretrained(run)
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(x)
        expected = source(x.transpose(2, 4) if axes == "xyz" else x)
    assert len(found) == len(expected) > 0
    for own, theirs in zip(found, expected, strict=True):
        wanted = theirs.transpose(2, 4) if axes == "xyz" else theirs
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def nnunet_checkpoint(
    plans: dict[str, Any], network: nn.Module, configuration: str = "3d_fullres", channels: int = 1
) -> dict[str, Any]:
    """What nnU-Net's trainers save, with the numbers of numpy that it keeps."""
    names = {str(c): "CT" for c in range(channels)}
    dataset_json = {"channel_names": names, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float32(0.25),
        "current_epoch": 3,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "dataset_json": dataset_json,
                      "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip


def decoder_maps(network: Any, x: Tensor) -> list[Tensor]:
    """Maps of a U-Net of dynamic_network_architectures, finest first, by hooks on its own forward pass."""
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *made: maps.append(made[2])) for stage in network.decoder.stages]
    hooks.append(network.encoder.register_forward_hook(lambda *made: maps.append(made[2][-1])))
    network(x)
    for hook in hooks:
        hook.remove()
    return maps[::-1]

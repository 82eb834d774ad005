"""The small world that the golden net is recorded in: two drawn datasets, small networks, and runs on them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch

import nnssl
import nnssl_trainers
from tests.phantoms import write_ct_dataset

SOURCE, TARGET = "Dataset500_Phantom", "Dataset017_Organs"
PRESET = "nnsslPlans_tiny"
CONFIGURATION = "3d_fullres"
T = TypeVar("T")


def _strides(levels: int) -> list[list[int]]:
    return [[1, 1, 1], *[[2, 2, 2]] * (levels - 1)]


# The networks of this package as users' plans name them, in small.
NETWORKS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "nnssl.networks.fpn_unet.FPN3dUNet": (
        {"base_channels": 4, "num_scales": 3, "strides": _strides(3)}, [16, 16, 16]),
    "nnssl.networks.pimpic_unet.PimpicUNet": (
        {"base_channels": 4, "num_scales": 3, "strides": _strides(4)}, [16, 16, 16]),
    "nnssl.networks.lapn_unet.LapnUNet": (
        {"channels": [4, 8, 8], "num_res_units": 2, "encoding_channels": 8, "strides": _strides(3)}, [16, 16, 16]),
    "nnssl.networks.monai_unet.MonaiUNet": (
        {"channels": [4, 8, 8], "num_res_units": 1, "strides": _strides(3)}, [16, 16, 16]),
    "nnssl.networks.vit.UNETR": (
        {"image_size": [32, 32, 32], "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2,
         "num_layers": 4, "strides": _strides(5)}, [32, 32, 32]),
    "nnssl.networks.swin.SwinUNETR": (
        {"feature_size": 12, "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24], "window_size": 4,
         "strides": _strides(6)}, [64, 64, 64]),
    "nnssl.networks.primus.Primus": (
        {"input_shape": [16, 16, 32], "embed_dim": 24, "eva_depth": 2, "eva_numheads": 2, "strides": _strides(4)},
        [16, 16, 32]),
    "nnssl.networks.nnformer.NNFormer": (
        {"widths": [8, 16, 32, 64], "num_heads": [2, 2, 4, 4], "strides": _strides(4)}, [16, 32, 32]),
}  # fmt: skip
# A method that is not here runs on a small U-Net of nnU-Net's.
_NETWORK_OF = {
    "vox2vec": "nnssl.networks.fpn_unet.FPN3dUNet",
    "pimpic": "nnssl.networks.pimpic_unet.PimpicUNet",
    "lapn": "nnssl.networks.lapn_unet.LapnUNet",
    "alice": "nnssl.networks.vit.UNETR",
}
# Validation has many batches, so that what augmentation does seldom happens too.
_STEPS = ["num_epochs=3", "steps_per_epoch=1", "val_steps_per_epoch=8", "save_every_epochs=3", "batch_size=2"]
_SMALL = {
    # A bias before batch normalisation has no gradient but rounding, which Adam makes a whole step of. The running
    # means lag, so that it would show in evaluation.
    "vox2vec": "voxels_per_pair=24 optimiser=sgd learning_rate=0.01",
    "voco": "grid=1,2,2 projection_dim=16 warmup_steps=2",
    "pimpic": "crops=4 pim_hidden_dim=8 pic_hidden_dim=8 projection_dim=8",
    "lapn": "points_per_pair=24 queue_size=100 encoding_dim=8",
    "sam": "points_per_pair=60 embedding_dim=8 fine_queries=12 fine_ignore_mm=4 fine_ranked=60 fine_negatives=20 "
           "global_negatives=10 warmup_steps=2",
    "mae": "token_width=12 decoder_width=12 decoder_depth=1 decoder_heads=2 warmup_steps=2",
    "alice": "token_width=12 decoder_width=12 decoder_depth=1 decoder_heads=2 warmup_steps=2 head_dim=8 "
             "head_hidden=16 head_bottleneck=6",
}  # fmt: skip
_ALIGNMENT = {"alice": "position"}


class World:
    """nnU-Net's folders under `root`, and what was made in them; everything is made once, when it is first needed.

    Every method has an `nnUNet_results` of its own, so that nothing depends on what was recorded before.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, Any] = {}
        write_ct_dataset(root / "raw", 500, "Phantom", 4, shape=(20, 36, 36))
        write_ct_dataset(root / "raw", 17, "Organs", 2, shape=(18, 32, 34), labelled=True)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, from its first call on."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    @contextlib.contextmanager
    def environment(self, results: str, **more: str) -> Iterator[None]:
        """A user's environment with seeds, one thread and no output; the test's own one comes back."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "nnssl_", "RANK", "WORLD_"))}
        variables |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "MPLBACKEND": "agg"}
        variables |= {"nnUNet_extTrainer": str(Path(nnssl_trainers.__file__).parent)}
        for name, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", f"results/{results}")):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            variables[f"nnUNet_{name}"] = str(self.root / folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with mock.patch.dict(os.environ, variables | more, clear=True), contextlib.redirect_stdout(io.StringIO()):
                seed()
                yield
        finally:
            torch.set_num_threads(threads)

    def preprocessed(self, dataset: str) -> Path:
        """Folder of a dataset, planned with the smallest preset."""

        def make() -> Path:
            with self.environment("none"):
                nnssl.plan_and_preprocess([dataset], preset=PRESET, num_processes=1, show_progress=False)
            return self.root / "preprocessed" / dataset

        return self.once(f"preprocessed {dataset}", make)

    def plans(self, method: str) -> str:
        """Name of plans for a method, on the volumes of the smallest preset."""
        folder = self.preprocessed(SOURCE)
        content = json.loads((folder / f"{PRESET}.json").read_text())
        content["plans_name"] = f"golden_{method}"
        content["configurations"][CONFIGURATION].update(small_network(_NETWORK_OF.get(method), content))
        (folder / f"golden_{method}.json").write_text(json.dumps(content))
        return f"golden_{method}"

    def run(self, method: str) -> Path:
        """Folder of a pretraining of three epochs of one step."""

        def make() -> Path:
            plans = self.plans(method)
            options = [*_STEPS, *_SMALL.get(method, "").split()]
            with self.environment(method):
                return nnssl.pretrain([500], method, plans=plans, device="cpu", num_processes=1, options=options,
                                      alignment=_ALIGNMENT.get(method))  # fmt: skip

        return self.once(f"run {method}", make)

    def image(self, dataset: str = TARGET, case: int = 0) -> Path:
        """First channel of a case."""
        return self.root / "raw" / dataset / "imagesTr" / f"case_{case:03d}_0000.nii.gz"


def seed() -> None:
    """Everything that nnU-Net and torch draw from."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def patch_of(size: Sequence[int], batch: int = 1) -> torch.Tensor:
    """(batch, 1, *size) of noise, as preprocessed images have their values."""
    return torch.from_numpy(np.random.default_rng(1).normal(size=(batch, 1, *size)).astype(np.float32))


def small_network(name: str | None, plans: dict[str, Any]) -> dict[str, Any]:
    """Entries of a configuration for one of `NETWORKS`; None for a U-Net smaller than the preset's."""
    if name is not None:
        arguments, patch = deepcopy(NETWORKS[name])
        return {"patch_size": patch, "architecture": {"network_class_name": name, "arch_kwargs": arguments,
                                                      "_kw_requires_import": []}}  # fmt: skip
    architecture = deepcopy(plans["configurations"][CONFIGURATION]["architecture"])
    architecture["arch_kwargs"] |= {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": [[3, 3, 3]] * 3, "strides": _strides(3),
        "n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2,
    }  # fmt: skip
    return {"patch_size": [16, 16, 16], "architecture": architecture}

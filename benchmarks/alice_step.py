"""Time of one Alice step of a query and a key: masks and target views, target, student, backward, optimiser, memory.

    python benchmarks/alice_step.py -network unet|vit|swin|nnformer -device cpu -threads 2

The default size is that at which the authors' code was timed on two CPU cores: one query and one key of 64^3. The
networks are a plans' U-Net of 32 to 320 channels, the ViT-B of the preset nnsslPlans_alice_vit, the Swin transformer of
nnsslPlans_alice_swin and the nnFormer of nnsslPlans_alice_nnformer. On a CPU that others use too, the CPU seconds of
all threads are steadier than the clock.
"""

from __future__ import annotations

import numpy as np
import torch
from parts import Parts, step_parser

from nnssl.methods.alice.augment import sample_target_views
from nnssl.methods.alice.method import Alice, AliceConfig
from nnssl.methods.base import Batch
from nnssl.networks.build import backbone_of
from nnssl.networks.nnformer import NNFormerPyramid
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.vit import ViTPyramid
from nnssl.pretraining.optimisation import build_optimiser, choose_precision

STAGES = 6  # of the U-Net, as nnU-Net's planner makes for such patches


def network(kind: str, patch: tuple[int, int, int]) -> FeaturePyramid:
    """The encoder, with random weights."""
    if kind == "vit":
        return ViTPyramid(1, patch, 16, 768, 3072, 12, 12)
    if kind == "swin":
        return SwinPyramid(1, 128, (2, 2, 18, 2), (4, 8, 16, 32), window_size=7, use_v2=False)
    if kind == "nnformer":
        return NNFormerPyramid()
    strides = [[1, 1, 1], *([[2, 2, 2]] * (STAGES - 1))]
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": STAGES,
            "features_per_stage": [32, 64, 128, 256, 320, 320],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * STAGES,
            "strides": strides,
            "n_conv_per_stage": [2] * STAGES,
            "n_conv_per_stage_decoder": [2] * (STAGES - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return backbone_of({"architecture": architecture, "normalization_schemes": ["CTNormalization"]}, "encoder")


def make_batch(volumes: int, patch: tuple[int, int, int]) -> Batch:
    """Pairs of crops of noise, as a loader would give them."""
    rng = np.random.default_rng(0)
    affine, is_ct = np.tile(np.array([-125.0, 350.0], dtype=np.float32), (2, 1, 1)), np.ones((2, 1), dtype=bool)
    samples = [
        {
            "crops": rng.random((2, 1, *patch), dtype=np.float32),
            "starts": np.zeros((2, 3), dtype=np.int64),
            "sizes": np.array([patch, patch]),
            "spacing": np.ones((2, 3), dtype=np.float32),
            "mask_seeds": rng.integers(0, 2**63, 2, dtype=np.int64),
            "similarity": np.float32(0.8),
            **sample_target_views(rng, affine, is_ct, AliceConfig()),
        }
        for _ in range(volumes)
    ]
    return Alice.collate(samples)


def main() -> None:
    """Print the median of every part over the repeats."""
    parser = step_parser(__doc__)
    parser.add_argument("-network", choices=("unet", "vit", "swin", "nnformer"), default="unet")
    parser.add_argument("-volumes", type=int, default=1, help="pairs a step")
    parser.add_argument("-patch", type=int, nargs=3, default=(64, 64, 64), metavar=("Z", "Y", "X"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, patch = torch.device(arguments.device), tuple(arguments.patch)
    config = AliceConfig(
        patch_size=patch,
        batch_size=arguments.volumes,
        head="moco" if arguments.volumes > 1 else "dino",
        standardise=arguments.volumes > 1,
    )
    torch.manual_seed(0)
    backbone = network(arguments.network, patch)
    Alice.check(config, backbone)
    method = Alice(backbone, config).to(device)
    optimiser = build_optimiser(config, method.parameters())
    precision = choose_precision(config, device)
    batch = make_batch(arguments.volumes, patch)
    batch = {k: v if k in Alice.host_keys else v.to(device) for k, v in batch.items()}
    parts = Parts(device)

    for step in range(arguments.repeats + 1):
        with parts.timed("augmentation"):
            views = method.augment(batch)
        with parts.timed("forward"), torch.autocast(device.type, precision, precision != torch.float32):
            loss = method(views).loss
        optimiser.zero_grad(set_to_none=True)
        with parts.timed("backward"):
            loss.backward()
        with parts.timed("optimiser"):
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimiser.step()
            method.after_step(step)
    student = sum(p.numel() for p in method.parameters() if p.requires_grad)
    print(
        f"{arguments.network}, {arguments.volumes} x query and key of {patch}, {student / 1e6:.1f} M trained "
        f"parameters, {device.type}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}"
    )
    print(parts.report())


if __name__ == "__main__":
    main()

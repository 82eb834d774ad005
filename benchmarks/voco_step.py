"""Time of one VoCo step: augmentation, teacher, student, loss, backward, optimiser and momentum update, and memory.

    python benchmarks/voco_step.py -device cpu -threads 2 [-network swin|unet] [-feature_size 48]

The default is the authors' network and one of their two volumes: 2 crops and 16 bases of 64 x 64 x 64, base size 96.
`-network unet` takes the encoder of nnsslPlans_tiny's U-Net. The last line is the time of a loader worker for one drawn
volume.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import blosc2
import numpy as np
import torch
from parts import Parts, step_parser
from torch import nn

from nnssl.data.presets import presets
from nnssl.data.volumes import Channel, VolumeFolder
from nnssl.methods.base import Batch
from nnssl.methods.voco.loss import code_terms
from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.networks.swin import SwinPyramid
from nnssl.pretraining.optimisation import build_optimiser, choose_precision


def make_backbone(network: str, feature_size: int, recompute: bool) -> FeaturePyramid:
    """The authors' SwinUNETR encoder, or the encoder of the U-Net of nnsslPlans_tiny."""
    if network == "swin":
        return SwinPyramid(feature_size=feature_size, use_checkpoint=recompute)
    plans = json.loads(presets()["nnsslPlans_tiny"].read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    return build_backbone(plans, "3d_fullres", "encoder")


def draw_volume(folder: Path, size: tuple[int, int, int]) -> VolumeFolder:
    """A folder with one volume "case" of noise, whose body is an ellipse."""
    volumes = VolumeFolder("Dataset500_Drawn", folder / "images", folder / "bodies", (1.5, 1.5, 1.5),
                           (Channel("CTNormalization", -175.0, 425.0),))  # fmt: skip
    volumes.images.mkdir()
    volumes.bodies.mkdir()
    _, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in size), indexing="ij", sparse=True)
    body = np.broadcast_to(y**2 + x**2 < 1, size)
    image = (np.random.default_rng(0).random(size, dtype=np.float32) * body)[None]
    chunk = (32, 64, 64)
    blosc2.asarray(image, urlpath=str(volumes.images / "case.b2nd"), chunks=(1, *chunk), mode="w")
    mask = blosc2.asarray(body.astype(np.uint8), urlpath=str(volumes.bodies / "case.b2nd"), chunks=chunk, mode="w")
    mask.schunk.vlmeta["slice_counts"] = [int(n) for n in body.sum((1, 2))]
    mask.schunk.vlmeta["intensity_range"] = [[0.0, 1.0]]
    return volumes


def make_batch(config: VoCoConfig, size: tuple[int, int, int]) -> tuple[Batch, list[float]]:
    """A batch as a loader gives it, and the seconds that each sample took."""
    samples, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        volumes = draw_volume(Path(folder), size)
        for i in range(int(config.batch_size or 1)):
            begin = time.perf_counter()
            samples.append(VoCo.sample(volumes.open("case", i), config, np.random.default_rng(i)))
            seconds.append(time.perf_counter() - begin)
    return VoCo.collate(samples), seconds


def main() -> None:
    """Print the median of every part over the repeats."""
    parser = step_parser(__doc__, repeats=3)
    parser.add_argument("-network", choices=["swin", "unet"], default="swin")
    parser.add_argument("-feature_size", type=int, default=48)
    parser.add_argument("-no_recompute", action="store_true", help="keep the transformer's activations")
    parser.add_argument("-volumes", type=int, default=1)
    parser.add_argument("-crops", type=int, default=2)
    parser.add_argument("-grid", type=int, nargs=3, default=(1, 4, 4), metavar=("Z", "Y", "X"))
    parser.add_argument("-patch", type=int, nargs=3, default=(64, 64, 64), metavar=("Z", "Y", "X"))
    parser.add_argument("-size", type=int, nargs=3, default=(200, 300, 300), metavar=("Z", "Y", "X"))
    parser.add_argument("-warm", type=int, default=1, help="steps before the measured ones")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    config = VoCoConfig(
        batch_size=given.volumes, crops=given.crops, grid=tuple(given.grid), patch_size=tuple(given.patch)
    )
    torch.manual_seed(0)
    method = VoCo(make_backbone(given.network, given.feature_size, not given.no_recompute), config).to(device)
    assert method.teacher is not None
    teacher: dict[str, nn.Module] = dict(method.teacher.items())
    optimiser = build_optimiser(config, method.parameters())
    precision = choose_precision(config, device)
    batch, sampling = make_batch(config, tuple(given.size))
    batch = {k: v.to(device) for k, v in batch.items()}
    parts = Parts(device)

    autocast = torch.autocast(device.type, precision, precision != torch.float32)
    for _ in range(given.warm + given.repeats):
        with parts.timed("augmentation"):
            views = method.augment(batch)["views"]
        with parts.timed("teacher"), autocast, torch.no_grad():
            followed = method.embed(teacher["backbone"], teacher["head"], views)
        with parts.timed("student"), autocast:
            student = method.embed(method.backbone, method.head, views)
        with parts.timed("loss"):
            terms = code_terms(*student, *followed, batch["labels"])
            loss = terms.positive + terms.negative + terms.regulariser
        optimiser.zero_grad(set_to_none=True)
        with parts.timed("backward"):
            loss.backward()
        with parts.timed("optimiser"):
            nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimiser.step()
        with parts.timed("momentum"):
            method.after_step(0)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    print(f"{given.network}, {trained:,} parameters, {given.volumes} x ({given.crops} crops + "
          f"{int(np.prod(given.grid))} bases), patch {tuple(given.patch)}, slab {tuple(batch['slab'].shape)}, "
          f"{device.type}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}")  # fmt: skip
    print(parts.report(given.warm))
    print(f"{'sample':13} {median(sampling):8.3f} s  for one volume of {tuple(given.size)} voxels in a loader worker")


if __name__ == "__main__":
    main()

"""Time of one PiMPiC step with the paper's network: augmentation, encoder, PiM, PiC, backward, optimiser, and memory.

    python benchmarks/pimpic_step.py -device cpu -threads 2
    python benchmarks/pimpic_step.py -crops 32 -patch 64 64 64 -repeats 2

The default size is that at which the authors' code was timed on two CPU cores: 8 crops of 32^3, all of whose 28 pairs
overlap. `backward` is that of the whole step; `PiC` is forward and backward of the region averages, the head and the
loss, timed apart from it on the same maps, and so not counted in the step a second time. On a CPU that others use too,
the CPU seconds of all threads are steadier than the time on the clock.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from parts import Parts, step_parser
from torch import Tensor

from nnssl.core.geometry import overlaps_of_patches, random_starts_around
from nnssl.methods.base import Batch, Sample
from nnssl.methods.pimpic.loss import pic_loss
from nnssl.methods.pimpic.method import Pimpic, PimpicConfig
from nnssl.methods.shared.augment import sample_window_intensity
from nnssl.networks.pimpic_unet import Pimpic3d
from nnssl.pretraining.optimisation import build_optimiser, choose_precision


def make_batch(crops: int, patch: tuple[int, int, int], spread: float) -> Batch:
    """Crops of noise around an anchor, as a loader would give them."""
    rng = np.random.default_rng(0)
    size = [4 * p for p in patch]
    anchor, starts = random_starts_around(rng, size, patch, crops, [int(spread * p) for p in patch])
    overlap, boxes = overlaps_of_patches(starts, patch)
    sample: Sample = {
        "crops": rng.random((crops, 1, *patch), dtype=np.float32),
        "starts": starts,
        "anchor": anchor,
        "overlap": overlap,
        "boxes": boxes,
        "pairs": np.argwhere(np.triu(overlap >= 0.01, k=1)),
        "hu_affine": np.array([[-200, 600]], dtype=np.float32),
        "is_ct": np.ones(1, dtype=bool),
        **sample_window_intensity(rng, crops, PimpicConfig()),
    }
    return Pimpic.collate([sample])


def time_pic(
    method: Pimpic, pyramid: list[Tensor], batch: Batch, wait: contextlib.AbstractContextManager[None]
) -> None:
    """Forward and backward of PiC alone, on maps that are there already."""
    maps = [level.detach().requires_grad_() for level in pyramid]
    with wait:
        regions = method.regions(maps, batch["boxes"].flatten(0, 1))
        rows = method.pic_rows(regions.unflatten(0, batch["boxes"].shape[:2]), batch["pairs"])
        pic_loss(rows, weights=batch["pair_weights"].to(rows.dtype)).backward()


def main() -> None:
    """Print the median of every part over the repeats."""
    parser = step_parser(__doc__)
    parser.add_argument("-crops", type=int, default=8)
    parser.add_argument("-patch", type=int, nargs=3, default=(32, 32, 32), metavar=("Z", "Y", "X"))
    parser.add_argument("-spread", type=float, default=0.3, help="share of the side; 0.3 makes all pairs overlap")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, patch = torch.device(arguments.device), tuple(arguments.patch)
    config = PimpicConfig(patch_size=patch, crops=arguments.crops)
    torch.manual_seed(0)
    method = Pimpic(Pimpic3d(), config).to(device)
    optimiser = build_optimiser(config, method.parameters())
    precision = choose_precision(config, device)
    batch = make_batch(arguments.crops, patch, arguments.spread)
    batch = {k: v if k in Pimpic.host_keys else v.to(device) for k, v in batch.items()}
    parts = Parts(device, aside=("PiC",))
    pyramids: list[list[Tensor]] = []
    method.backbone.register_forward_hook(lambda module, inputs, output: pyramids.append(output))
    for _ in range(arguments.repeats + 1):
        pyramids.clear()
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
        time_pic(method, pyramids[0], views, parts.timed("PiC"))
    print(f"{arguments.crops} crops of {patch}, {len(batch['pairs'])} pairs, {device.type}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {precision}")  # fmt: skip
    print(parts.report())


if __name__ == "__main__":
    main()

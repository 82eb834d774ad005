"""Time of one vox2vec step with the paper's network: augmentation, forward, loss, backward, optimiser, and memory.

    python benchmarks/vox2vec_step.py -device cpu -threads 2

The default size is that at which the authors' code was timed on two CPU cores: two views of two crops of 64 x 64 x 32,
200 matched voxels a pair.
"""

from __future__ import annotations

import numpy as np
import torch
from parts import Parts, step_parser

from nnssl.methods.base import Batch, Sample
from nnssl.methods.shared.info_nce import info_nce
from nnssl.methods.vox2vec.augment import sample_intensity
from nnssl.methods.vox2vec.method import Vox2vec, Vox2vecConfig
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.optimisation import build_optimiser, choose_precision


def make_batch(pairs: int, patch: tuple[int, int, int], voxels: int) -> Batch:
    """Pairs of crops whose first voxels match, as a loader would give them."""
    rng = np.random.default_rng(0)
    samples: list[Sample] = []
    for i in range(pairs):
        chosen = rng.choice(np.prod(patch), voxels, replace=False)
        position = np.stack(np.unravel_index(chosen, patch), 1)
        samples.append({
            "crops": rng.random((2, 1, *patch), dtype=np.float32),
            "voxels": np.stack([position, position], 1),
            "source": np.column_stack([np.full(voxels, i), position.astype(float)]),
            "hu_affine": np.tile(np.array([-1350, 2350], dtype=np.float32), (2, 1, 1)),
            "is_ct": np.ones((2, 1), dtype=bool),
            **sample_intensity(rng, 2, Vox2vecConfig()),
        })  # fmt: skip
    return Vox2vec.collate(samples)


def main() -> None:
    """Print the median of every part over the repeats."""
    parser = step_parser(__doc__)
    parser.add_argument("-pairs", type=int, default=2)
    parser.add_argument("-patch", type=int, nargs=3, default=(32, 64, 64), metavar=("Z", "Y", "X"))
    parser.add_argument("-voxels", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    config = Vox2vecConfig(batch_size=arguments.pairs, patch_size=tuple(arguments.patch))
    torch.manual_seed(0)
    method = Vox2vec(FPN3d(1, 16, 6), config).to(device)
    optimiser = build_optimiser(config, method.parameters())
    precision = choose_precision(config, device)
    batch = make_batch(arguments.pairs, tuple(arguments.patch), arguments.voxels)
    batch = {k: v if k in Vox2vec.host_keys else v.to(device) for k, v in batch.items()}
    parts = Parts(device)

    for _ in range(arguments.repeats + 1):
        with parts.timed("augmentation"):
            views = method.augment(batch)
        with parts.timed("forward"), torch.autocast(device.type, precision, precision != torch.float32):
            crops, voxels, counts = (views[key] for key in ("crops", "voxels", "counts"))
            h1, h2 = (method.embed(crops[:, k], voxels[:, k], counts) for k in range(2))
        with parts.timed("loss"):
            loss = info_nce(h1, h2, config.temperature, sources=views["source"])
        optimiser.zero_grad(set_to_none=True)
        with parts.timed("backward"):
            loss.backward()
        with parts.timed("optimiser"):
            torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
            optimiser.step()
    print(f"{arguments.pairs} pairs, patch {tuple(arguments.patch)}, {arguments.voxels} voxels a pair, {device.type}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}")  # fmt: skip
    print(parts.report())


if __name__ == "__main__":
    main()

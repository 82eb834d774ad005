"""Copy a raw dataset whose volumes lie around one structure, so that the structure no longer lies in their middle.

    python benchmarks/pays_crops.py 501 511

Of the margin around the labels, one side of each axis, drawn at random, loses between a half and all; dataset 511 gets
the rest, the same at every call. Prints the Dice of an ellipsoid in the middle of the new volumes, which takes no look
at the image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnssl.benchmarking.case_scores import dice
from nnssl.cli.run import entry
from nnssl.core.files import read_json, write_json
from nnssl.core.geometry import bounding_box
from nnssl.core.schemas import DatasetFile
from nnssl.data.folders import dataset_name, require_folders


def copy_name(original: str, number: int) -> str:
    """Full name of the copy of a dataset."""
    return f"Dataset{number:03d}_{original.partition('_')[2]}Aside"


def box_of(labels: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
    """What is kept of a label map (z, y, x) with at least one foreground voxel."""
    kept = []
    for size, start, stop in zip(labels.shape, *bounding_box(labels != 0), strict=True):
        lost = 1 - 0.5 * rng.random()
        at_end, at_start = slice(round(start * lost), size), slice(0, size - round((size - stop) * lost))
        kept.append(at_end if rng.random() < 0.5 else at_start)
    return tuple(kept)


def crop_aside(source: Path, target: Path) -> list[np.ndarray]:
    """Write the copy, `dataset.json` last; returns its label maps (z, y, x)."""
    content = read_json(source / "dataset.json", DatasetFile, "the raw dataset needs one")
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True, exist_ok=True)
    rng, maps, ending = np.random.default_rng(0), [], content["file_ending"]
    for file in sorted((source / "labelsTr").glob(f"*{ending}")):
        labels = sitk.ReadImage(str(file))
        box = box_of(sitk.GetArrayFromImage(labels), rng)[::-1]  # (x, y, z), as SimpleITK counts
        image = f"{file.name.removesuffix(ending)}_0000{ending}"
        sitk.WriteImage(labels[box], str(target / "labelsTr" / file.name))
        sitk.WriteImage(sitk.ReadImage(str(source / "imagesTr" / image))[box], str(target / "imagesTr" / image))
        maps.append(sitk.GetArrayFromImage(labels[box]))
    write_json(target / "dataset.json", content)
    return maps


def ellipsoid_dice(maps: list[np.ndarray]) -> float:
    """Mean Dice of the best ellipsoid in the middle of the volumes, its axes a share of the volume's."""
    return max(
        float(np.mean([dice(labels > 0, _ellipsoid(labels.shape, share)) for labels in maps]))
        for share in np.arange(0.2, 1.2, 0.05)
    )


def _ellipsoid(shape: tuple[int, ...], share: float) -> np.ndarray:
    axes = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    return np.asarray(sum(axis**2 for axis in axes) < share**2)


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=int, help="number of the dataset")
    p.add_argument("target", type=int, help="number of the copy")
    return p


def _command(arguments: argparse.Namespace) -> None:
    (raw,) = require_folders("nnUNet_raw")
    source = dataset_name(arguments.source)
    maps = crop_aside(raw / source, raw / copy_name(source, arguments.target))
    print(f"{len(maps)} volumes; Dice of an ellipsoid in the middle: {ellipsoid_dice(maps):.2f}")


main = entry(parser, _command)

if __name__ == "__main__":
    main()

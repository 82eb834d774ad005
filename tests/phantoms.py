"""Small raw datasets in nnU-Net's format, made from ellipsoids: a CT torso and a head-like MR."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def ellipsoid(
    shape: Sequence[int], centre: Sequence[float], radii: Sequence[float], offset: np.ndarray | None = None
) -> np.ndarray:
    """Filled ellipsoid as a bool array of `shape` (Z, Y, X); centre and radii are fractions of the shape.

    `offset` (3,) moves it, in fractions of the shape too; a radius of `inf` makes it a cylinder along that axis.
    """
    middle = np.asarray(centre) + (0.0 if offset is None else offset)
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    distance = np.zeros(tuple(shape))
    for grid, size, c, radius in zip(grids, shape, middle, radii, strict=True):
        distance = distance + (((grid + 0.5) / size - c) / radius) ** 2
    return distance <= 1.0


def ct_volume(shape: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One torso: HU as int16 and labels (1 liver, 2 spine) as uint8, both `shape` (Z, Y, X).

    Outside air is -1000, fat rim -100, muscle 40, two closed lungs -800, organs 110 and 400, noise of 10 HU inside.
    """
    shift = rng.uniform(-0.03, 0.03, size=3) * np.array([0.0, 1.0, 1.0])
    scale = rng.uniform(0.92, 1.0)
    body = ellipsoid(shape, (0.5, 0.5, 0.5), (np.inf, 0.40 * scale, 0.46 * scale), shift)
    muscle = ellipsoid(shape, (0.5, 0.5, 0.5), (np.inf, 0.35 * scale, 0.41 * scale), shift)
    lungs = ellipsoid(shape, (0.65, 0.48, 0.31), (0.25, 0.17, 0.12), shift)
    lungs |= ellipsoid(shape, (0.65, 0.48, 0.69), (0.25, 0.17, 0.12), shift)
    liver = ellipsoid(shape, (0.22, 0.45, 0.35), (0.18, 0.18, 0.17), shift)
    spine = ellipsoid(shape, (0.5, 0.75, 0.5), (np.inf, 0.06, 0.06), shift)
    hu = np.full(tuple(shape), -1000.0)
    for mask, value in ((body, -100.0), (muscle, 40.0), (lungs, -800.0), (liver, 110.0), (spine, 400.0)):
        hu[mask] = value
    hu[body] += rng.normal(0.0, 10.0, size=int(body.sum()))
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    labels[liver] = 1
    labels[spine] = 2
    return np.round(hu).astype(np.int16), labels


def mr_volume(shape: Sequence[int], num_channels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One head: (C, Z, Y, X) float32, zeros outside, a scale of its own per case; labels (1) as uint8."""
    shift = rng.uniform(-0.04, 0.04, size=3)
    head = ellipsoid(shape, (0.5, 0.5, 0.5), (0.42, 0.38, 0.38), shift)
    core = ellipsoid(shape, (0.5, 0.5, 0.5), (0.15, 0.15, 0.15), shift)
    gain = rng.uniform(0.5, 20.0)
    image = np.zeros((num_channels, *shape), dtype=np.float32)
    for channel in range(num_channels):
        tissue = np.where(core, 200.0 - 60.0 * channel, 100.0 + 40.0 * channel) + rng.normal(
            0.0, 5.0, size=tuple(shape)
        )
        image[channel] = np.where(head, gain * np.clip(tissue, 1.0, None), 0.0)
    return image, core.astype(np.uint8)


def write_volume(path: Path, array: np.ndarray, spacing: Sequence[float], direction: Sequence[float] = LPS) -> None:
    """Write `array` (Z, Y, X) with `spacing` in mm (z, y, x) to whatever format the file name asks for.

    TIFF carries no spacing, so that nnU-Net's `<case>.json` with the spacing is written beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(path, array)
        stem = path.name[: -len(path.suffix)]
        # nnU-Net takes the channel number off an image's name, and leaves a label's as it is.
        case = stem[:-5] if path.parent.name.startswith("images") else stem
        (path.parent / f"{case}.json").write_text(json.dumps({"spacing": list(spacing)}))
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing][::-1])
    image.SetDirection([float(d) for d in direction])
    sitk.WriteImage(image, str(path), useCompression=True)


def write_dataset_json(
    folder: Path, channels: Sequence[str], labels: Sequence[str], num_cases: int, file_ending: str
) -> None:
    """Write nnU-Net's dataset.json: background and then `labels` in order."""
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(labels)}},
        "numTraining": num_cases,
        "file_ending": file_ending,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))


def write_ct_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    num_cases: int,
    shape: Sequence[int] = (24, 40, 40),
    spacing: Sequence[float] = (3.0, 1.5, 1.5),
    labelled: bool = False,
    file_ending: str = ".nii.gz",
    seed: int = 0,
) -> Path:
    """Write `raw/DatasetXXX_name` with `num_cases` torso CTs called `case_000`, ... and return that folder.

    Shapes and spacings are (z, y, x); spacing in mm. With `labelled` there is a labelsTr with liver 1 and spine 2.
    """
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    write_dataset_json(folder, ["CT"], ["liver", "spine"] if labelled else [], num_cases, file_ending)
    for case in range(num_cases):
        hu, labels = ct_volume(shape, np.random.default_rng((seed, dataset_id, case)))
        write_volume(folder / "imagesTr" / f"case_{case:03d}_0000{file_ending}", hu, spacing)
        if labelled:
            write_volume(folder / "labelsTr" / f"case_{case:03d}{file_ending}", labels, spacing)
    return folder


def write_mr_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    num_cases: int,
    shape: Sequence[int] = (16, 40, 36),
    spacing: Sequence[float] = (5.0, 1.0, 1.0),
    num_channels: int = 2,
    labelled: bool = False,
    file_ending: str = ".nii.gz",
    seed: int = 0,
) -> Path:
    """Write `raw/DatasetXXX_name` with `num_cases` heads of one or two channels (T1, T2) and return that folder.

    The default spacing, in mm and (z, y, x), is anisotropic by nnU-Net's threshold of 3.
    """
    folder = raw / f"Dataset{dataset_id:03d}_{name}"
    write_dataset_json(folder, ["T1", "T2"][:num_channels], ["core"] if labelled else [], num_cases, file_ending)
    for case in range(num_cases):
        image, labels = mr_volume(shape, num_channels, np.random.default_rng((seed, dataset_id, case)))
        for channel in range(num_channels):
            write_volume(folder / "imagesTr" / f"case_{case:03d}_{channel:04d}{file_ending}", image[channel], spacing)
        if labelled:
            write_volume(folder / "labelsTr" / f"case_{case:03d}{file_ending}", labels, spacing)
    return folder
